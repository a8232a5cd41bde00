"""Generated text is replayed, together with its own prompt."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from source_parts import origins, rows, step, writers

from abkd.errors import ConfigError
from abkd.schedules import anneal
from abkd.sources import Completion, Dataset, Mix, Privileged, Replay, StudentSamples, Union, open_source


class Numbered:
    """Every completion is one token, a different one each time."""

    def __init__(self):
        self.count = 1000

    def __call__(self, prompts, sampling, *, seed):
        self.count += len(prompts)
        return [Completion([self.count - len(prompts) + place], True) for place in range(len(prompts))]


def told_apart(drawn):
    return [one["input_ids"][-1] for group in drawn for one in group]


def anew(source, steps, count=4):
    """The steps at which text was generated."""
    stream, found, newest = open_source(source, writers(student=Numbered())), [], 1000
    for number in range(steps):
        last = max(told_apart(stream.draw(rows(count, start=number), step(number, steps=steps))))
        found.append(last >= newest)
        newest = max(newest, last + 1)
    return found


def test_until_it_is_full_all_is_new():
    assert anew(Replay(StudentSamples(), capacity=20, fresh=0.0), 12) == [True] * 5 + [False] * 7


@pytest.mark.parametrize(
    ("fresh", "early", "late"),
    [(0.3, 0.3, 0.3), (anneal(1.0, 0.0), 0.75, 0.25), (anneal(0.0, 1.0), 0.25, 0.75), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)],
    ids=["constant", "decreasing", "increasing", "never", "always"],
)
def test_how_often_it_is_fresh(fresh, early, late):
    found = anew(Replay(StudentSamples(), capacity=4, fresh=fresh), 600)
    for half, share in ((found[1:300], early), (found[300:], late)):
        assert abs(sum(half) / len(half) - share) <= 4 * math.sqrt(share * (1 - share) / 300)


def test_it_keeps_the_last_and_never_more():
    stream = open_source(Replay(StudentSamples(), capacity=10, fresh=0.5), writers(student=Numbered()))
    written = []
    for number in range(40):
        drawn = told_apart(stream.draw(rows(4), step(number)))
        written += [one for one in drawn if one not in written]
        kept = told_apart([[one] for one in stream.state_dict()["0"]["kept"]])
        assert kept == written[-10:]
        assert stream.logs()["replay_size"] == len(kept)


def test_replayed_ones_are_drawn_evenly_without_repeats():
    stream = open_source(Replay(StudentSamples(), capacity=8, fresh=0.0), writers(student=Numbered()))
    stream.draw(rows(8), step())
    stream.logs()
    seen = Counter()
    for number in range(1, 401):
        drawn = told_apart(stream.draw(rows(4), step(number)))
        assert len(set(drawn)) == 4
        seen.update(drawn)
    assert stream.logs()["replayed_fraction"] == 1.0
    assert len(seen) == 8
    assert all(abs(count / 400 - 0.5) < 0.1 for count in seen.values())
    others = stream.draw(rows(4), step(1, process=1))
    assert others != stream.draw(rows(4), step(1)), "each process draws for itself"


def test_as_many_as_there_are_prompts_also_from_few():
    stream = open_source(Replay(StudentSamples(), capacity=2, fresh=0.0), writers(student=Numbered()))
    stream.draw(rows(2), step())
    drawn = stream.draw(rows(7), step(1))
    assert [len(group) for group in drawn] == [1] * 7
    assert set(told_apart(drawn)) <= {1000, 1001}
    assert stream.logs()["replayed_fraction"] == pytest.approx(7 / 9)


def test_several_sequences_of_a_prompt_are_kept_one_by_one():
    source = Replay(Union(StudentSamples(), StudentSamples()), capacity=6, fresh=0.0)
    stream = open_source(source, writers(student=Numbered()))
    assert [len(group) for group in stream.draw(rows(3), step())] == [2, 2, 2]
    assert [len(group) for group in stream.draw(rows(3), step(1))] == [1, 1, 1]


def test_the_plain_text_is_that_of_the_row_and_not_of_the_kept_sequence():
    stream = open_source(Replay(StudentSamples(), capacity=3, fresh=0.0), writers(student=Numbered()))
    stream.draw(rows(3), step())
    drawn = stream.draw(rows(3, start=50), step(1))
    assert [group[0].get("pretrain_ids") for group in drawn] == [[150], [151], [152]]
    assert all("pretrain_ids" not in one for one in stream.state_dict()["0"]["kept"])


@pytest.mark.parametrize(
    "source", [Privileged(Replay(StudentSamples(), 3, 0.0)), Replay(Privileged(StudentSamples()), 3, 0.0)]
)
def test_a_replayed_sequence_keeps_the_context_of_its_own_prompt(source):
    stream = open_source(source, writers(student=Numbered()))
    stream.draw(rows(3), step())
    for (one,) in stream.draw(rows(3, start=50), step(1)):
        assert one["input_ids"][0] < 103, "of another prompt than the one that was given"
        assert one.get("teacher_input_ids") == [7, one["input_ids"][0], *one["input_ids"]]


def test_only_what_stands_inside_privileged_has_a_context():
    stream = open_source(Union(Privileged(Dataset()), Dataset(), StudentSamples()), writers(student=Numbered()))
    (drawn,) = stream.draw(rows(1), step())
    assert ["teacher_input_ids" in one for one in drawn] == [True, False, False]
    assert drawn[2]["input_ids"][:2] == [100, 5], "the student writes without the context"


def test_processes_of_which_one_is_not_full_write_together():
    together = writers(student=Numbered(), in_any_process=lambda flag: True)
    stream = open_source(Replay(StudentSamples(), capacity=2, fresh=0.0), together)
    assert [max(told_apart(stream.draw(rows(2), step(number)))) for number in range(3)] == [1001, 1003, 1005]


def test_a_checkpoint_of_another_source_is_named():
    stream = open_source(Mix(0.5, Replay(StudentSamples()), Dataset()), writers())
    state = json.loads(json.dumps(stream.state_dict()))
    for other in (Replay(StudentSamples()), Mix(0.5, Dataset(), Replay(StudentSamples()))):
        with pytest.raises(ConfigError, match="the checkpoint is from another source: resume with the source the run"):
            open_source(other, writers()).load_state_dict(state)


def test_logs_are_weighted_by_what_each_part_gave():
    def student(prompts, sampling, seed):
        return [Completion([2] * (1 if sampling.temperature else 5), bool(sampling.temperature)) for _ in prompts]

    source = Union(Mix(1.0, StudentSamples(), Dataset()), Replay(StudentSamples(temperature=0.0), 4, 0.0))
    stream = open_source(source, writers(student=student))
    for number in range(3):
        drawn = stream.draw(rows(4), step(number))
        assert origins(drawn) == [2] * 8
    found = stream.logs()
    assert found["clipped_fraction"] == pytest.approx(12 / 24)
    assert found["replayed_fraction"] == pytest.approx(8 / 12)
    assert found["completion_length"] == pytest.approx(3.0)
    assert found["replay_size"] == 4
