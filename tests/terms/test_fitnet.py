"""FitNets (arXiv 1412.6550): features of both models, and a projector that is trained but not saved as the student."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from abkd import ForwardKL, Term
from abkd.errors import ConfigError
from abkd.models.cifar import create
from abkd.models.language import CausalRows
from abkd.models.rows import Outputs
from abkd.models.vision import Classifier
from abkd.objective import Objective
from abkd.ops import Dense
from abkd.recipe import load
from abkd.teachers import LiveReader
from abkd.terms import FitNet, ModelInfo
from image_parts import CLASSES, cifar, image_trainer, pictures
from objective_parts import batch_of
from training_parts import gap, gpt2, llama, lora, rows, trainer, weights

TEXT = [Term(ForwardKL()), FitNet("hidden.1", "hidden.2", weight=5.0)]
IMAGES = [Term(ForwardKL()), FitNet("layer2", "layer3", weight=5.0)]


def value(term: FitNet, mine: torch.Tensor, theirs: torch.Tensor, weight: torch.Tensor) -> Any:
    """The loss, and the opened term."""
    shapes = {"s": tuple(mine.shape[1:])}, {"t": tuple(theirs.shape[1:])}
    opened = Objective(terms=[term]).open(ModelInfo(*shapes))
    rows = Dense(torch.zeros(len(mine), 3, requires_grad=True))
    found = opened(Outputs(rows, {"s": mine}), Outputs(None, {"t": theirs}), batch_of(weight), progress=0.0)
    return found.loss, opened.modules[0]


@pytest.mark.parametrize("shape", [(6,), (4, 6), (6, 5, 5)])
def test_equal_features_have_no_distance(shape: tuple[int, ...]) -> None:
    mine = torch.randn(4, *shape, requires_grad=True)
    loss, opened = value(FitNet("s", "t"), mine, mine.detach().clone(), torch.ones(4))
    assert loss == 0.0
    assert not torch.autograd.grad(loss, mine)[0].any()
    assert opened.projector is None


def test_it_is_the_formula() -> None:
    """Equation 3 for features, and for maps of two sizes; with the weights of the rows."""
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0])
    mine, theirs = torch.randn(4, 5), torch.randn(4, 7)
    loss, opened = value(FitNet("s", "t", weight=3.0), mine, theirs, weight)
    each = (torch.nn.functional.linear(mine, *opened.projector.parameters()) - theirs).square().mean(1)
    torch.testing.assert_close(loss, 3.0 * (each * weight).sum() / 4.0)
    mine, theirs = torch.randn(4, 5, 6, 6), torch.randn(4, 7, 3, 3)
    loss, opened = value(FitNet("s", "t"), mine, theirs, weight)
    kernel = opened.projector.weight[:, :, None, None]
    smaller = torch.nn.functional.avg_pool2d(mine, 2)
    each = (torch.nn.functional.conv2d(smaller, kernel, opened.projector.bias) - theirs).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, (each * weight).sum() / 4.0)


@pytest.mark.parametrize("make", [lambda: llama(0, layers=3), lambda: gpt2(0, layers=3)], ids=["llama", "gpt2"])
def test_hidden_states_are_those_of_transformers(make: Any) -> None:
    model = make().eval()
    rows = CausalRows(model)
    view = rows.probe()
    names = ["hidden.0", "hidden.1", "hidden.-1", "hidden.3", "hidden.-2"]
    with torch.no_grad():
        found = rows.read(view, names).features
        expected = model(**view.inputs, output_hidden_states=True).hidden_states
    for name in names:
        assert torch.equal(found[name], expected[int(name.removeprefix("hidden."))][0]), name


def test_a_teacher_stops_after_its_last_feature() -> None:
    model, ran = llama(0, layers=4), []
    for place, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, place=place: ran.append(place))
    reader = LiveReader(CausalRows(model))
    found = reader.read(reader.rows.probe(), ["hidden.2"], stop=True)
    assert found.rows is None
    assert ran == [0, 1]
    whole = reader.read(reader.rows.probe(), ["hidden.2"])
    assert torch.equal(found.features["hidden.2"], whole.features["hidden.2"])


def text(path: Path, **options: Any) -> Any:
    return trainer(path, gpt2(0, layers=2), **{"terms": TEXT, **options})


def images(path: Path, **options: Any) -> Any:
    student, taught = Classifier(cifar(0)), Classifier(create("resnet8x4", CLASSES))
    options = {"terms": IMAGES, "ce_weight": 0.0, **options}
    return image_trainer(path, student, teach=taught, data=pictures(12, side=32), **options)


@pytest.mark.parametrize("make", [text, images], ids=["text", "images"])
def test_the_student_is_saved_without_it_and_resumed_with_it(make: Any, tmp_path: Path) -> None:
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 0}
    whole = make(tmp_path / "whole", **options)
    plain = set(whole.model.state_dict())
    first = whole.loss.objective.modules[1].projector.weight.detach().clone()
    whole.train()
    assert set(whole.model.state_dict()) == plain  # and nothing is left on the student
    assert gap({"w": whole.loss.objective.modules[1].projector.weight}, {"w": first}) > 1e-4  # it was trained
    whole.save_model()
    saved = tmp_path / "whole" / "checkpoint-2" / "model.safetensors"
    for file in (saved, tmp_path / "whole" / "model.safetensors"):
        assert not [name for name in load_file(file) if "terms" in name or "projector" in name]
    assert set(load_file(tmp_path / "whole" / "checkpoint-2" / "abkd_objective.safetensors")) == {
        "terms.1.projector.weight",
        "terms.1.projector.bias",
    }
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = make(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=True)
    assert gap(resumed.model, whole.model) == 0.0
    assert gap(resumed.loss.objective.modules, whole.loss.objective.modules) == 0.0


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_adapters_and_projector_are_trained_together(tmp_path: Path) -> None:
    made = trainer(tmp_path, llama(0, layers=2), terms=TEXT, peft_config=lora(0.0), max_steps=3)
    before = weights(made.model)
    made.train()
    changed = {name for name, tensor in weights(made.model).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora" in name for name in changed)
    made.save_model()
    assert all("lora" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    early = [Term(ForwardKL()), FitNet("hidden.0", "hidden.0")]
    with pytest.raises(ConfigError, match=r"hidden.0 has no gradient: it is computed from frozen weights only"):
        trainer(tmp_path / "early", llama(0), terms=early, peft_config=lora()).train()


def test_hints_first_and_rows_afterwards(tmp_path: Path) -> None:
    """The paper's two stages; a parameter that a stage does not use gets a gradient of 0."""
    terms = "stages((1, [FitNet('hidden.1', 'hidden.1')]), (1, [Term(ForwardKL())]))"
    made = trainer(tmp_path, llama(0), terms=terms, max_steps=4, weight_decay=0.0, eval_dataset=rows(4))
    head = made.model.lm_head.weight.detach().clone()
    made.train()
    lines = [line for line in made.state.log_history if "loss" in line]
    assert ["feature_distance" in line for line in lines] == [True, True, False, False]
    assert ["divergence" in line for line in lines] == [False, False, True, True]
    assert not torch.equal(made.model.lm_head.weight, head)


def test_the_recipes_are_the_published_settings(tmp_path: Path) -> None:
    hint, student = FitNet("layer2", "layer2", weight=100.0, projector=True), Term(ForwardKL(), None, 1.0, 1.0, 0.0)
    assert load("cifar100/resnet32x4_resnet8x4_fitnet").config["terms"] == [student, hint]
    models = create("resnet8x4"), create("resnet32x4")
    assert all(any(name == "layer2" for name, _ in model.named_modules()) for model in models)
    assert load("fitnet").config["terms"][1] == FitNet("hidden.-1", "hidden.-1")


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([FitNet("hidden.9", "hidden.1")], r"hidden.9: LlamaForCausalLM has the hidden states 0 \(embeddings\) to 1"),
        ([FitNet("modell", "hidden.1")], "has no module 'modell'; name a module by its path, such as one of model"),
    ],
)
def test_a_feature_that_does_not_exist_is_named(tmp_path: Path, terms: list[FitNet], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, terms=terms)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"compare the teacher's hidden.2, and TopKCache\(.*\) has no features: use"):
        trainer(tmp_path, terms=TEXT, teacher="TopKCache()")
    with pytest.raises(ConfigError, match=r"got shapes \[32, 16, 16\] \(student\) and \[5\] \(teacher\) per row"):
        images(tmp_path, terms=[FitNet("layer2", "fc")])
    with pytest.raises(ConfigError, match="projector must be True or None, got 'linear'"):
        FitNet("a", "b", projector="linear")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="student must be the name of a feature"):
        FitNet("", "b")
