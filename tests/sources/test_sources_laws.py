"""Properties of every source, over random trees."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from source_parts import TREES, Written, origins, rows, run, step, writers

from abkd.notation import parse, render
from abkd.schedules import stages
from abkd.sources import Privileged, TeacherSamples, fingerprint, is_privileged, open_source, walk
from abkd.stateful import Evaluated

LOSSES = st.lists(st.floats(0, 4), max_size=3)


@settings(max_examples=60, deadline=None)
@given(TREES, LOSSES)
def test_the_same_steps_draw_the_same(source, losses):
    first, again = open_source(source, writers()), open_source(source, writers())
    for loss in losses:
        assert run(first, range(4)) == run(again, range(4))
        first.observe(Evaluated(0, {"eval_loss": loss}))
        again.observe(Evaluated(0, {"eval_loss": loss}))
    assert run(first, range(4, 8)) == run(again, range(4, 8))
    assert first.logs() == again.logs()


@settings(max_examples=60, deadline=None)
@given(TREES, LOSSES, st.integers(0, 6))
def test_a_resumed_run_draws_what_it_would_have_drawn(source, losses, stop):
    whole = open_source(source, writers())
    run(whole, range(stop))
    for loss in losses:
        whole.observe(Evaluated(0, {"eval_loss": loss}))
    resumed = open_source(source, writers())
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert resumed.state_dict() == whole.state_dict()
    whole.logs()  # what was drawn before the checkpoint was logged before it
    assert run(resumed, range(stop, stop + 6)) == run(whole, range(stop, stop + 6))
    for stream in (whole, resumed):
        stream.observe(Evaluated(0, {"eval_loss": 9.0}))
    assert run(resumed, range(20, 22)) == run(whole, range(20, 22))
    assert resumed.logs() == whole.logs()
    assert resumed.state_dict() == whole.state_dict()


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_what_is_drawn_is_whole(source):
    """A list per row, with its plain text in the first; the completion is trained, on the teacher's side too."""
    stream = open_source(source, writers())
    for number in range(6):
        asked = rows(3, start=3 * number)
        drawn = stream.draw(asked, step(number))
        assert len(drawn) == len(asked)
        assert set(origins(drawn)) <= {0, 1, 2}
        for row, sequences in zip(asked, drawn, strict=True):
            texts = [one.get("pretrain_ids") for one in sequences]
            assert texts == [row.get("pretrain_ids"), *[None] * 99][: len(texts)]
            for one in sequences:
                count = sum(one["trained"])
                assert one["trained"] == [False] * (len(one["input_ids"]) - count) + [True] * count
                assert count > 0
                assert is_privileged(source) or "teacher_input_ids" not in one
                if "teacher_input_ids" in one:
                    mark, number_, *rest = one["teacher_input_ids"]
                    assert (mark, rest) == (7, one["input_ids"]), "the context belongs to the prompt"
                    assert number_ == one["input_ids"][0]
                    assert sum(one.get("teacher_trained", [])) == count


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_processes_decide_alike(source):
    """They generate at the same steps with the same settings and seeds.

    (If completions are empty, a buffer may be full earlier than another: then ``in_any_process`` decides.)
    """
    asked = []
    for process in range(2):
        mine = writers(student=Written(least=1))
        run(open_source(source, mine), range(10), process=process)
        asked.append(mine.student.calls)
    assert asked[0] == asked[1]


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_a_source_is_its_text(source):
    assert parse(render(source)) == source
    staged = stages((0.3, source), (0.7, TeacherSamples()))
    assert parse(render(staged)) == staged


@settings(max_examples=100, deadline=None)
@given(TREES, TREES)
def test_the_fingerprint_is_equal_for_equal_ones_alone(source, other):
    assert fingerprint(source, "data") == fingerprint(parse(render(source)), "data")
    assert fingerprint(source, "data") != fingerprint(source, "other data")
    assert (fingerprint(source, "data") == fingerprint(other, "data")) == (source == other)
    assert len(fingerprint(source, "")) == 16
    if not any(isinstance(part, Privileged) for part in walk(source)):
        assert fingerprint(Privileged(source, "x"), "data") != fingerprint(Privileged(source, "y"), "data")
