"""The prompted student: its output, what is trained and what is not, and loading from its directory alone."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from clip_parts import NAMES, clip_in, image_features
from torch import nn

from abkd import AlphaBeta, ForwardKL, divergence_loss
from abkd.errors import ConfigError
from abkd.models.clip import ClassHead, load_clip, load_clip_pair
from abkd.models.prompted import PromptedStudent, load_student
from abkd.models.vision import Preparation

DEPTH, LENGTH = 2, 3


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    path = tmp_path_factory.mktemp("pair")
    clip_in(path / "teacher", 1, width=32, projection=24)
    clip_in(path / "student", 2, width=16, projection=12)
    return str(path / "teacher"), str(path / "student")


@pytest.fixture
def pair(directories):
    return load_clip_pair(*directories, NAMES, prompt_length=LENGTH, prompt_depth=DEPTH)


@pytest.fixture
def student(pair):
    return pair[1].model


@pytest.fixture
def head():
    return ClassHead(nn.functional.normalize(torch.randn(6, 24), dim=-1), torch.tensor(20.0), NAMES)


@pytest.fixture
def pixels():
    return torch.randn(6, 3, 8, 8)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_prompts_and_projector_it_is_the_clip_to_the_bit(directories, head, pixels, attention):
    clip = load_clip(directories[1], what="", attn_implementation=attention)
    with torch.no_grad():
        expected = image_features(clip, pixels)
        student = PromptedStudent(clip, head, prompt_depth=0)
        student.projector = nn.Identity()
        assert torch.equal(student.features(pixels), expected)
        assert torch.equal(student.train().features(pixels), expected)


def test_deep_prompts_as_the_paper_has_them(student, pixels):
    """Compared with the equations in plain torch: new prompts in each of the first layers, previous ones dropped."""
    tower, heads = student.eval().vision_model, 4

    def attention(x, part):
        q, k, v = (
            nn.functional.linear(x, each.weight, each.bias).unflatten(-1, (heads, -1)).transpose(1, 2)
            for each in (part.q_proj, part.k_proj, part.v_proj)
        )
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return part.out_proj((weights @ v).transpose(1, 2).flatten(2))

    with torch.no_grad():
        patches = tower.embeddings.patch_embedding(pixels).flatten(2).mT
        x = torch.cat([tower.embeddings.class_embedding.expand(6, 1, -1), patches], 1)
        x = x + tower.embeddings.position_embedding.weight
        own = x.shape[1]
        x = tower.pre_layrnorm(torch.cat([x, student.prompts[0].expand(6, -1, -1)], 1))
        for number, layer in enumerate(tower.encoder.layers):
            if number == 1:
                x = torch.cat([x[:, :own], student.prompts[1].expand(6, -1, -1)], 1)
            assert x.shape[1] == own + LENGTH
            x = x + attention(layer.layer_norm1(x), layer.self_attn)
            hidden = layer.mlp.fc1(layer.layer_norm2(x))
            x = x + layer.mlp.fc2(hidden * torch.sigmoid(1.702 * hidden))
        feature = student.visual_projection(tower.post_layernorm(x[:, 0]))
        first, norm, _, last = student.projector
        feature = first(feature)
        feature = (feature - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        feature = last(feature.relu())
        cosines = nn.functional.cosine_similarity(feature[:, None], student.head.class_features[None], dim=-1)
        torch.testing.assert_close(student(pixels), student.head.scale * cosines, rtol=1e-4, atol=1e-4)


def test_every_prompt_learns_and_nothing_frozen(student, pixels):
    divergence_loss(student.train()(pixels), torch.randn(6, 6), AlphaBeta(0.8, 0.4)).backward()
    assert (student.prompts.grad.abs().sum(-1) > 0).all()
    learning = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert learning == {
        "prompts",
        *(f"projector.{number}.{kind}" for number in (0, 1, 3) for kind in ("weight", "bias")),
    }
    for name, parameter in student.named_parameters():
        assert (parameter.grad is not None) == (name in learning), name


def test_training_changes_prompts_and_projector_alone(pair, pixels):
    teacher, student = (each.model for each in pair)
    of_teacher, before = state(teacher), state(student)
    optimizer = torch.optim.SGD([each for each in student.parameters() if each.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        with torch.no_grad():
            wanted = teacher(pixels)
        student.train()
        divergence_loss(student(pixels), wanted, ForwardKL()).backward()
        optimizer.step()
        optimizer.zero_grad()
    learnt = {"prompts", *(f"projector.{name}" for name in student.projector.state_dict())}
    assert changed(before, student) == learnt
    assert not changed(of_teacher, teacher)
    after = state(student)
    student.eval()(pixels)
    assert not changed(after, student)


def test_modes(student):
    student.train()
    modes = {module.training for part in (student.vision_model, student.visual_projection) for module in part.modules()}
    assert modes == {False}
    assert student.training
    assert student.projector[1].training
    assert not any(module.training for module in student.eval().modules())


def test_a_batch_of_one_is_read_by_the_running_statistics(student, pixels):
    student.train()(pixels)
    before = state(student)
    alone = student(pixels[:1])
    alone.sum().backward()
    assert torch.isfinite(student.prompts.grad).all()
    assert not changed(before, student)
    torch.testing.assert_close(alone, student.eval()(pixels)[:1], rtol=1e-5, atol=1e-5)


def test_autocast(pair, pixels):
    teacher, student = (each.model for each in pair)
    student.train()
    exact = student(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        logits = student(pixels)
        loss = divergence_loss(logits, teacher(pixels), AlphaBeta(0.8, 0.4))
    loss.backward()
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().max() < 0.1 * student.head.scale  # a bfloat16 tower, not bfloat16 logits
    assert all(torch.isfinite(each.grad).all() for each in student.parameters() if each.requires_grad)
    assert (student.prompts.grad.abs().sum(-1) > 0).all()


def test_a_tower_in_sixteen_bits(directories, head, pixels):
    clip = load_clip(directories[1], what="", dtype=torch.bfloat16)
    student = PromptedStudent(clip, head, prompt_length=2, prompt_depth=3)
    student(pixels).sum().backward()
    assert student.prompts.dtype == torch.float32
    assert (student.prompts.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("depth", [DEPTH, 0])
def test_its_directory_is_enough(directories, tmp_path, pixels, depth):
    near = [shutil.copytree(each, tmp_path / str(number)) for number, each in enumerate(directories)]
    _, trained = load_clip_pair(*map(str, near), NAMES, prompt_length=LENGTH, prompt_depth=depth)
    student = trained.model
    for _ in range(3):
        student.train()(pixels + 1.0)  # the statistics of the batch norm are part of it
    preparation = Preparation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 8, 9)
    student.save_pretrained(tmp_path / "out", preparation)
    for each in near:
        shutil.rmtree(each)
    drawn = torch.get_rng_state()
    loaded = load_student(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), drawn)
    with torch.no_grad():
        assert torch.equal(loaded.model(pixels), student.eval()(pixels))
    assert loaded.preparation == preparation
    assert loaded.class_names == NAMES
    wanted = {name for name, each in student.named_parameters() if each.requires_grad}
    assert {name for name, each in loaded.model.named_parameters() if each.requires_grad} == wanted
    assert not changed(state(student), loaded.model)


def test_its_directory_keeps_the_number_types(directories, head, tmp_path, pixels):
    student = PromptedStudent(load_clip(directories[1], what="", dtype=torch.bfloat16), head, prompt_depth=DEPTH).eval()
    student.save_pretrained(tmp_path, Preparation())
    loaded = load_student(tmp_path).model
    types = {name: weight.dtype for name, weight in student.named_parameters()}
    assert {name: weight.dtype for name, weight in loaded.named_parameters()} == types
    with torch.no_grad():
        assert torch.equal(loaded(pixels), student(pixels))


def test_a_copy_is_its_own(student, pixels):
    """An EMA teacher is a deep copy: it must not use the student's prompts."""
    twin = copy.deepcopy(student).eval()
    with torch.no_grad():
        before = twin(pixels)
        student.prompts.add_(1.0)
        assert torch.equal(twin(pixels), before)
        assert not torch.equal(student.eval()(pixels), before)


def test_directories_that_hold_no_student(student, tmp_path, directories):
    with pytest.raises(ConfigError, match="no prompted CLIP student in"):
        load_student(directories[1])
    student.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "prompted_clip.json").read_text())
    (tmp_path / "prompted_clip.json").write_text(json.dumps({**told, "prompt_length": LENGTH + 1}))
    with pytest.raises(ConfigError, match=r"is damaged: .*prompts"):
        load_student(tmp_path)
    (tmp_path / "prompted_clip.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        load_student(tmp_path)
    student.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="is damaged"):
        load_student(tmp_path)
    weights.unlink()
    with pytest.raises(ConfigError, match="no prompted CLIP student in"):
        load_student(tmp_path)


def test_prompts_that_cannot_be_meant(directories, head):
    clip = load_clip(directories[1], what="")
    for depth in (-1, 4):
        with pytest.raises(
            ConfigError, match="prompt_depth must be 0 to 3, the number of layers in the student's image tower"
        ):
            PromptedStudent(clip, head, prompt_depth=depth)
    with pytest.raises(ConfigError, match="prompt_length must be >= 1, got"):
        PromptedStudent(clip, head, prompt_length=0, prompt_depth=1)
