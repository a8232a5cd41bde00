"""Teachers derived from the student follow it exactly, never change it, and resume exactly from a checkpoint."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from safetensors.torch import load, save
from teacher_parts import a_batch, logits, own_logits, setting, steps, tied, trained, with_adapters
from torch import nn

import abkd
from abkd.errors import ConfigError, OutputDirError
from abkd.models.language import CausalRows
from abkd.stateful import StepEnd
from abkd.teachers import EMA, AdapterOff, Live, Snapshot, TeacherContext
from abkd.trainer._distillation import run_inside
from training_parts import gpt2, llama, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

STUDENTS = {"llama": lambda: llama(0), "tied": tied, "adapters": lambda: with_adapters(llama(0), moved=True)}


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_the_running_mean_is_the_formula(name, decay):
    student = STUDENTS[name]()
    expected = {key: value.double() for key, value in trained(student).items()}
    reader = EMA(decay).open(setting(student))
    assert all(torch.equal(value, expected[key].float()) for key, value in reader.state_dict().items())
    for step in steps(student, 5):
        reader.observe(StepEnd(step, 0.0, {}))
        for key, value in trained(student).items():
            expected[key] = decay * expected[key] + (1 - decay) * value.double()
    found = reader.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].double(), value, rtol=1e-6, atol=1e-7)
    first = next(iter(expected))
    assert torch.equal(found[first], trained(student)[first]) == (decay == 0)
    view = a_batch().student
    torch.testing.assert_close(logits(reader, view), own_logits(reader.model, view), rtol=1e-5, atol=1e-5)


def test_a_mean_in_sixteen_bits_is_kept_in_thirty_two():
    """One part in a thousand is less than bfloat16 can add to 1: rounded at each step, the mean would never change."""
    student = llama(0).bfloat16()
    reader = EMA(0.999).open(setting(student))
    start = {name: value.float() for name, value in trained(student).items()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(2)
    for step in range(300):
        reader.observe(StepEnd(step + 1, 0.0, {}))
    for name, mean in reader.state_dict().items():
        torch.testing.assert_close(mean, start[name] * (2 - 0.999**300), rtol=1e-4, atol=0)
        assert torch.equal(dict(reader.model.named_parameters())[name], mean.bfloat16())
    assert not logits(reader, a_batch().student).equal(own_logits(student, a_batch().student))
    again = EMA(0.999).open(setting(llama(4).bfloat16()))
    again.load_state_dict(reader.state_dict())
    assert torch.equal(logits(again, a_batch().student), logits(reader, a_batch().student))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in reader.state_dict().items())


def test_a_snapshot_is_the_student_at_the_last_multiple():
    student = gpt2(0)
    reader = Snapshot(every=3).open(setting(student))
    view, known = a_batch().student, [own_logits(student, a_batch().student)]
    assert torch.equal(logits(reader, view), known[0])
    for step in steps(student, 7):
        reader.observe(StepEnd(step, 0.0, {}))
        known.append(own_logits(student, view))
        torch.testing.assert_close(logits(reader, view), known[step - step % 3], rtol=1e-5, atol=1e-5)
        assert (logits(reader, view) - known[step]).abs().max() > 1e-3 or step % 3 == 0
    assert not any(parameter.requires_grad for parameter in reader.model.parameters())
    assert not reader.model.training


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("spec", [EMA(0.8), Snapshot(2)], ids=repr)
def test_a_resumed_teacher_goes_on_bit_by_bit(spec, name):
    student = STUDENTS[name]()
    reader = spec.open(setting(student))
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    for step in steps(student, 3, optimizer):
        reader.observe(StepEnd(step, 0.0, {}))
    kept, state = weights(student), reader.state_dict()
    saved = save(state)
    for step in steps(student, 3, optimizer):
        reader.observe(StepEnd(3 + step, 0.0, {}))

    other = STUDENTS[name]()
    resumed = spec.open(setting(other))  # before the checkpoint's weights are put into the student, as a trainer does
    other.load_state_dict(kept)
    resumed.load_state_dict(load(saved))
    optimizer = torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=0.1)
    for step in steps(other, 3, optimizer):
        resumed.observe(StepEnd(3 + step, 0.0, {}))
    assert save(state) == saved != save(reader.state_dict()) == save(resumed.state_dict())
    assert torch.equal(logits(reader, a_batch().student), logits(resumed, a_batch().student))


def test_the_state_of_another_student_is_refused():
    reader = EMA().open(setting(llama(0)))
    for other in (tied(), llama(0, width=48)):
        with pytest.raises(OutputDirError, match=r"the checkpoint's state of EMA\(decay=0.999\) does not match this"):
            reader.load_state_dict(EMA().open(setting(other)).state_dict())


class Counted(nn.Module):
    """A module with buffers: a running mean, a count, and one that is not saved in checkpoints."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("derived", torch.ones(3), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            self.count += 1
            self.mean += 0.5
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize(("spec", "count"), [(EMA(0.5), 3), (Snapshot(2), 2)], ids=repr)
def test_buffers_are_those_of_the_student(spec, count):
    student = llama(0)
    student.model.norm = Counted(student.model.norm)
    reader = spec.open(setting(student))
    for step in steps(student, 3):
        reader.observe(StepEnd(step, 0.0, {}))
    state = reader.state_dict()
    assert state["model.norm.count"].item() == count
    assert state["model.norm.mean"].item() == 0.5 * count
    assert not any("derived" in name or "inv_freq" in name for name in state)


@pytest.mark.parametrize("spec", [EMA(0.5), Snapshot(1)], ids=repr)
def test_under_adapters_only_they_are_copied_and_move(spec):
    student = with_adapters(llama(0), moved=True)
    base = weights(student.get_base_model())
    reader = spec.open(setting(student))
    assert all("lora" in name for name in reader.state_dict())
    mine, theirs = dict(reader.model.named_parameters()), dict(student.named_parameters())
    for name, parameter in mine.items():
        assert (parameter is theirs[name]) == ("lora" not in name)
    for step in steps(student, 3):
        reader.observe(StepEnd(step, 0.0, {}))
    after = weights(student.get_base_model())
    assert all(torch.equal(value, base[name]) for name, value in after.items() if "lora" not in name)
    assert all(parameter.requires_grad == ("lora" in name) for name, parameter in theirs.items())
    same = torch.equal(logits(reader, a_batch().student), logits(CausalRows(student), a_batch().student))
    assert same == (spec == Snapshot(1))


def hooked(model: Any) -> Any:
    """Like a model that accelerate has dispatched over devices: its forward is a partial function."""
    return add_hook_to_module(model, ModelHook())


class Doubled(nn.Linear):
    """A head that is not a matrix: rows are read through the model's own forward."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) * 2.0


@pytest.mark.parametrize("wrap", [lambda model: model, hooked], ids=["plain", "hooked"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_copy_runs_itself(when, wrap):
    """Both before and after the trainer replaces the student's forward."""
    student = llama(0)
    head = Doubled(32, 340, bias=False)
    head.weight = student.lm_head.weight
    student.lm_head = head
    student = wrap(student).eval()
    rows, view = CausalRows(student), a_batch().student
    expected = own_logits(student, view)
    if when == "after":
        run_inside(student)
    reader = Snapshot().open(TeacherContext(student=rows))
    if when == "before":
        run_inside(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert reader.rows.dense_because is not None
    assert torch.equal(logits(reader, view), expected)
    assert logits(rows, view).abs().max() == 0
    assert student(job=lambda: "inside") == "inside"


PLACES = {
    "layers": {},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "head trained": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "layers, dropout": {"lora_dropout": 0.5},
}


@pytest.mark.parametrize("place", PLACES)
def test_without_adapters_it_is_the_base_model(place):
    base, view = llama(0, attention_dropout=0.5), a_batch().student
    expected = own_logits(base, view)
    student = with_adapters(base, moved=True, **PLACES[place])
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    reader = AdapterOff().open(setting(student))
    reader.check()
    assert reader.head_rows == 340
    adapted = own_logits(student, view)
    student.train()
    student.get_base_model().model.norm.eval()  # as a user may have left it
    frozen = next(parameter for name, parameter in student.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    modes, flags = states(student)
    random = torch.random.get_rng_state()

    found = logits(reader, view)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not found.requires_grad
    assert states(student) == (modes, flags)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.equal(own_logits(student, view), adapted)
    assert (adapted - expected).abs().max() > 1e-2
    reader.classes = 300
    assert torch.equal(logits(reader, view), found[:, :300])


def states(model: Any) -> tuple[dict[str, bool], dict[str, bool]]:
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
    )


@pytest.mark.parametrize("divergence", [abkd.AlphaBeta(0.2, 0.7), abkd.ForwardKL(), abkd.JensenShannon()], ids=repr)
def test_adapters_that_do_nothing_yet_are_at_distance_zero(divergence):
    student, batch = with_adapters(llama(0)), a_batch()
    teacher = AdapterOff().open(setting(student))(batch.teacher)
    out = abkd.linear_divergence(CausalRows(student)(batch.student), teacher, divergence)
    assert out.loss.item() == 0.0
    assert out.divergence.abs().max() == 0.0
    out.loss.backward()
    assert max(parameter.grad.abs().max() for parameter in student.parameters() if parameter.requires_grad) == 0.0


@pytest.mark.parametrize("context", [contextlib.nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)])
@pytest.mark.parametrize("asked", ["first", "last"])
def test_passing_over_the_adapters_costs_them_no_gradient(asked, context):
    base, batch = llama(0), a_batch()
    student = with_adapters(base, moved=True)
    off = AdapterOff().open(setting(student))
    live = Live().open(setting(student, llama(0)))
    slopes = []
    for reader in (off, live):
        student.zero_grad()
        with context():
            teacher = reader(batch.teacher) if asked == "first" else None
            rows = CausalRows(student)(batch.student)
            teacher = teacher or reader(batch.teacher)
            abkd.linear_divergence(rows, teacher, abkd.AlphaBeta(0.2, 0.7)).loss.backward()
        slopes.append({name: p.grad.clone() for name, p in student.named_parameters() if p.requires_grad})
    assert all("lora" in name and value.abs().max() > 0 for name, value in slopes[0].items())
    assert all(torch.equal(value, slopes[1][name]) for name, value in slopes[0].items())


def test_a_student_without_adapters_or_with_a_moving_base_is_refused():
    with pytest.raises(ConfigError, match=r"this student has none: set use_peft: true, or use teacher: Snapshot\(\)"):
        AdapterOff().open(setting(llama(0)))
    biased = with_adapters(llama(0, attention_bias=True), bias="all")
    with pytest.raises(ConfigError, match=r"needs a frozen base model, but .*bias is trained"):
        AdapterOff().open(setting(biased))


@pytest.fixture
def mesh():
    """A process group of this process only, without communication."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("spec", [EMA(), Snapshot(), AdapterOff()], ids=repr)
def test_a_student_in_shards_is_refused(spec, mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    student = with_adapters(llama(0))
    reader = spec.open(setting(student))
    norm = student.get_base_model().model.norm
    whole = norm.weight
    norm.weight = nn.Parameter(distribute_tensor(whole.detach(), mesh, [Shard(0)]), requires_grad=False)
    words = r"each process holds only a shard of them \(FSDP, ZeRO-3\): train with DDP or ZeRO-2"
    with pytest.raises(ConfigError, match=words):
        reader.observe(StepEnd(1, 0.0, {}))
    with pytest.raises(ConfigError, match=words):
        spec.open(setting(student))
    norm.weight = whole
    whole.ds_id = 0  # what DeepSpeed gives to each parameter that it parts
    with pytest.raises(ConfigError, match=words):
        reader.observe(StepEnd(2, 0.0, {}))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: EMA(1.5), "decay must be a number from 0 to 1, such as 0.999, got 1.5"),
        (lambda: EMA(float("nan")), "decay must be a number from 0 to 1"),
        (lambda: EMA(True), "decay must be a number from 0 to 1"),
        (lambda: Snapshot(0), "every must be a number of steps, an integer >= 1, got 0"),
        (lambda: Snapshot(2.0), "every must be a number of steps"),
        (lambda: Snapshot(True), "every must be a number of steps"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()
