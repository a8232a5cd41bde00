"""Rows read from a cache equal the live teacher's, however they are batched."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from cache_parts import FAMILIES, build, data, known, live, setting, view

from abkd import AlphaBeta
from abkd.data import Example, pack
from abkd.data.dataset import TokenizedDataset
from abkd.data.vocabulary import vocabulary_size
from abkd.errors import DataError
from abkd.models.language import CausalRows
from abkd.ops import TopK, linear_divergence
from abkd.teachers import HiddenCache, TopKCache
from abkd.teachers.caches._build import build_cache
from abkd.teachers.caches._keys import distinct, sequence_keys, sequences_of
from training_parts import llama, teacher, tokenizer


def open_hidden(folder: Path, **options):
    spec = HiddenCache(path=str(folder / "hidden"), **options)
    build(spec)
    return spec.open(setting())


def as_built() -> list[Example]:
    """The examples in the order of the teacher's batches, for which its forward is the same."""
    by_key = sorted(distinct(data()).values(), key=lambda reading: (-len(reading.ids), reading.key))
    rows = {next(sequences_of(example)).key: example for example in data()}
    return [rows[reading.key] for reading in by_key]


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_rows_and_their_gradients_are_the_live_teachers_bit_for_bit(tmp_path: Path, family: str) -> None:
    model = FAMILIES[family]()
    spec = HiddenCache(path=str(tmp_path))
    build(spec, model=model, batch_size=len(data()))
    student = CausalRows(llama(0))
    read = view(as_built())
    results = []
    for reader in (live(model), spec.open(setting())):
        student.model.zero_grad()
        out = linear_divergence(student(read), reader(read), AlphaBeta(0.2, 0.7))
        out.loss.backward()
        results.append([out.loss.detach(), *(p.grad for p in student.model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def layouts() -> dict[str, list[tuple[list[Example], dict]]]:
    examples = list(data())
    shuffled = random.Random(1).sample(examples, len(examples))
    packed = list(pack(TokenizedDataset(examples), 64))
    return {
        "shuffled, by three": [(shuffled[i : i + 3], {}) for i in range(0, 12, 3)],
        "one by one": [([example], {}) for example in examples],
        "padded on the left": [(shuffled, {"padding_side": "left"})],
        "padded to 32": [(shuffled, {"pad_to_multiple_of": 32})],
        "packed": [(packed, {})],
        "packed, padded on the left": [(packed, {"padding_side": "left", "pad_to_multiple_of": 16})],
        "with nothing to predict": [([Example(input_ids=[1, 1], trained=[False, False]), *shuffled], {})],
    }


@pytest.mark.parametrize("layout", layouts())
def test_the_same_rows_are_found_in_every_batch(tmp_path: Path, layout: str) -> None:
    hidden, alive = open_hidden(tmp_path), live()
    for examples, options in layouts()[layout]:
        read = view(examples, **options)
        assert len(hidden(read)) == len(read.rows) > 0
        torch.testing.assert_close(hidden(read).hidden, alive(read).hidden, rtol=0, atol=1e-5)
    assert len(hidden(view([Example(input_ids=[5, 6], trained=[False, False])]))) == 0


def test_two_contexts_are_two_sequences(tmp_path: Path) -> None:
    """The same completion, for which the teacher reads more than the student, or another prompt."""
    base = data()[3]

    def behind(context: list[int]) -> Example:
        trained = [False] * len(context) + base["trained"]
        return Example(**base, teacher_input_ids=[*context, *base["input_ids"]], teacher_trained=trained)

    told = [behind([7, 8, 9]), behind([9, 8, 7]), behind([])]
    spec = HiddenCache(path=str(tmp_path))
    assert build(spec, told).sequences == 3
    reader, alive = spec.open(setting()), live()
    read = view(told)
    torch.testing.assert_close(reader(read).hidden, alive(read).hidden, rtol=0, atol=1e-5)
    first, second, third = reader(read).hidden.chunk(3)
    assert min((first - second).abs().max(), (second - third).abs().max()) > 1e-2
    with pytest.raises(DataError, match="not in the cache"):
        reader(view([behind([7, 8, 10])]))


def test_rows_that_were_not_trained_on_are_missing_until_they_are_added(tmp_path: Path) -> None:
    spec = HiddenCache(path=str(tmp_path))
    narrow = data()[3]
    wide = Example(input_ids=narrow["input_ids"], trained=[False] + [True] * (len(narrow["input_ids"]) - 1))
    gaps = Example(input_ids=narrow["input_ids"], trained=[t % 2 == 1 for t in range(len(narrow["input_ids"]))])
    build(spec, [narrow])
    reader = spec.open(setting())
    for other in (wide, gaps):
        with pytest.raises(DataError):
            reader(view([other]))
        with pytest.raises(DataError, match="1 of 2 sequences"):
            reader.check_covers([narrow, other], "train")
    build(spec, [wide])
    reader = spec.open(setting())
    for each in (narrow, wide, gaps):
        torch.testing.assert_close(reader(view([each])).hidden, live()(view([each])).hidden, rtol=0, atol=1e-5)


def test_what_a_view_asks_for_is_what_an_example_has() -> None:
    examples = list(data())
    for chosen in (examples, list(pack(TokenizedDataset(examples), 64))):
        wanted = [
            (r.key, [first + i for first, n in r.runs for i in range(n)]) for e in chosen for r in sequences_of(e)
        ]
        for side in ("left", "right"):
            found = [(key, positions.tolist()) for key, positions in sequence_keys(view(chosen, padding_side=side))]
            assert found == wanted


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_classes_are_the_live_teacher_to_a_step(tmp_path: Path, temperature: float) -> None:
    spec = TopKCache(k=10_000, path=str(tmp_path))
    build(spec, temperature=temperature)
    reader = spec.open(setting(temperature=temperature))
    read = view(list(data()))
    rows = reader(read)
    exact = torch.log_softmax(live()(read).logits(slice(None)).double() / temperature, -1)
    assert rows.log_p.shape == exact.shape
    assert reader.exact
    wrong = (rows.log_p - exact.gather(-1, rows.ids)).abs()
    step = (exact.amax(-1) - exact.amin(-1)) / 65534
    assert (wrong.amax(-1) <= step + 5e-6).all()
    student = CausalRows(llama(0))(read)
    values = [
        linear_divergence(student, p, AlphaBeta(0.2, 0.7), temperature=temperature).loss.item()
        for p in (rows, live()(read))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_the_likeliest_classes_and_the_exact_tail(tmp_path: Path) -> None:
    spec = TopKCache(k=16, path=str(tmp_path))
    build(spec)
    reader = spec.open(setting())
    read = view(list(data()))
    rows = reader(read)
    exact = torch.log_softmax(live()(read).logits(slice(None)).double(), -1)
    assert isinstance(rows, TopK)
    assert rows.classes == reader.head_rows == 340
    torch.testing.assert_close(rows.log_p.double(), exact.topk(16, -1).values, rtol=0, atol=2e-4)
    torch.testing.assert_close(exact.gather(-1, rows.ids), exact.topk(16, -1).values, rtol=0, atol=2e-4)
    tail = (1 - exact.topk(16, -1).values.exp().sum(-1)).log()
    torch.testing.assert_close(rows.log_tail.double(), tail, rtol=2e-6, atol=2e-6)
    sums = rows.log_p.exp().sum(-1) + rows.log_tail.exp()
    torch.testing.assert_close(sums, torch.ones(len(rows)), rtol=0, atol=17 * torch.finfo(torch.float32).eps)
    targets = read.inputs["input_ids"].flatten()[read.rows + 1]
    torch.testing.assert_close(rows.log_target, exact.gather(-1, targets[:, None]).squeeze(-1).float())
    assert reader.logs() == {"covered_mass": pytest.approx((1 - rows.log_tail.exp()).mean().item())}
    assert reader.logs() == {}


def test_bfloat16_storage_of_a_float32_teacher(tmp_path: Path) -> None:
    """Each hidden feature is rounded by up to 2⁻⁹, the cost of the option; the head is unchanged."""
    reader, read = open_hidden(tmp_path, dtype="bfloat16"), view(list(data()))
    rows, exact = reader(read), live()(read)
    assert torch.equal(rows.head.weight, exact.head.weight)
    assert ((rows.hidden - exact.hidden).abs() <= exact.hidden.abs() * 2**-8 + 1e-6).all()
    log_p, log_q = (torch.log_softmax(each.logits(slice(None)), -1) for each in (exact, rows))
    assert (log_p.exp() * (log_p - log_q)).sum(-1).mean() < 1e-4


def test_scale_softcap_and_bias_of_the_head_are_kept(tmp_path: Path) -> None:
    class Capped(CausalRows):
        @property
        def head(self):
            bias = torch.linspace(-1, 1, 340)
            return super().head._replace(bias=bias, scale=0.5, softcap=3.0)

        def check(self) -> None:
            pass

    rows, spec = Capped(teacher().eval()), HiddenCache(path=str(tmp_path))
    build_cache(spec, data(), lambda: rows, identity=known(), tokens=vocabulary_size(tokenizer()))
    read = view(list(data()))
    with torch.no_grad():
        torch.testing.assert_close(spec.open(setting())(read).logits(slice(None)), rows(read).logits(slice(None)))
