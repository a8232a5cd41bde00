"""``Mix``, stages and ``Union``."""

from __future__ import annotations

import math

import pytest
from source_parts import DATASET, STUDENT, TEACHER, origins, rows, step, writers

from abkd.generation import Sampling
from abkd.schedules import anneal, stages
from abkd.sources import (
    Adaptive,
    Completion,
    Dataset,
    Mix,
    Replay,
    StudentSamples,
    TeacherSamples,
    Union,
    open_source,
)
from abkd.stateful import Evaluated

ONE = rows(1)


def from_data(source, steps=600, *, seed=0):
    """The steps at which the data were drawn."""
    stream = open_source(
        source, writers(student=lambda prompts, sampling, seed: [Completion([1], True)] * len(prompts))
    )
    return [origins(stream.draw(ONE, step(n, seed=seed, steps=steps))) == [DATASET] for n in range(steps)]


def differing(one, other):
    return sum(a != b for a, b in zip(one, other, strict=True)) / len(one)


class TestMix:
    @pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
    def test_the_share_is_how_often(self, share):
        """600 random choices: four standard deviations are at most 0.082."""
        found = 1 - sum(from_data(Mix(share, StudentSamples(), Dataset()))) / 600
        assert abs(found - share) <= 4 * math.sqrt(share * (1 - share) / 600)

    def test_coins_of_a_tree_and_of_seeds_are_independent(self):
        half = Mix(0.5, StudentSamples(), Dataset())
        alone, inner = from_data(half), from_data(Mix(1.0, half, StudentSamples()))
        other = from_data(Mix(0.0, StudentSamples(), half))
        for pair in ((alone, inner), (inner, other), (alone, other), (alone, from_data(half, seed=1))):
            assert abs(differing(*pair) - 0.5) < 0.082
        nested = from_data(Mix(0.5, half, half))
        assert abs(sum(nested) / 600 - 0.5) < 0.082
        assert abs(sum(from_data(Mix(0.5, half, StudentSamples()))) / 600 - 0.25) < 0.071

    def test_a_share_may_follow_a_schedule(self):
        falling = from_data(Mix(anneal(0.0, 1.0), StudentSamples(), Dataset()))
        assert abs(sum(falling[:300]) / 300 - 0.75) < 0.1
        assert abs(sum(falling[300:]) / 300 - 0.25) < 0.1
        assert falling[0]
        assert from_data(Mix(stages((1, 0.0), (1, 1.0)), StudentSamples(), Dataset()), 20) == [True] * 10 + [False] * 10

    def test_it_is_a_share_of_whole_steps(self):
        stream = open_source(Mix(0.5, TeacherSamples(), Dataset()), writers())
        assert {tuple(origins(stream.draw(rows(3), step(n)))) for n in range(20)} == {(0,) * 3, (1,) * 3}


class TestAdaptive:
    PATH = (3.0, 2.95, 3.1, 3.0, 3.1, 3.25, 3.3, 3.41, 2.0, 2.1)
    """Up at 3.1 (2.95 + 0.1 is reached), 3.1, 3.25, 3.41 and 2.1; not at 3.3, which is only 0.05 more."""

    def test_a_recorded_path_of_losses_is_replayed(self):
        """The reference is the rule of the paper's algorithm: φ + 0.1 if L_t ≥ L_{t-1} + ε."""
        stream = open_source(Mix(Adaptive(), StudentSamples(), Dataset()), writers())
        found, wanted, before = [], [], math.inf
        share = 0.0
        for loss in self.PATH:
            stream.observe(Evaluated(0, {"eval_loss": loss}))
            found.append(stream.logs()["mix_share"])
            share, before = (min(1.0, share + 0.1) if loss >= before + 0.1 else share), loss
            wanted.append(share)
        assert found == wanted
        assert found == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5])

    def test_it_only_grows_and_ends_at_1(self):
        stream = open_source(Mix(Adaptive(0.25, 0.3, 0.0), StudentSamples(), Dataset()), writers())
        found = []
        for loss in [1, 0.5, 0.5, 2, 1, 3, 4, 5, 0, 9]:
            stream.observe(Evaluated(0, {"eval_loss": float(loss)}))
            found.append(stream.logs()["mix_share"])
        assert found == pytest.approx([0.25, 0.25, 0.55, 0.85, 0.85, 1, 1, 1, 1, 1])
        assert max(found) == 1.0

    def test_the_share_is_what_is_drawn_with(self):
        stream = open_source(Mix(Adaptive(step=1.0), StudentSamples(), Dataset()), writers())
        assert {DATASET} == {origin for n in range(20) for origin in origins(stream.draw(rows(), step(n)))}
        for loss in (1.0, 2.0):
            stream.observe(Evaluated(0, {"eval_loss": loss}))
        assert {STUDENT} == {origin for n in range(20) for origin in origins(stream.draw(rows(), step(n)))}

    def test_other_metrics_and_losses_that_are_none_change_nothing(self):
        stream = open_source(Mix(Adaptive(), StudentSamples(), Dataset()), writers())
        before = stream.state_dict()
        stream.observe(Evaluated(0, {"eval_accuracy": 3.0}))
        stream.observe(Evaluated(0, {"eval_loss": math.nan}))
        assert stream.state_dict() == before

    def test_it_is_told_also_deep_in_a_tree(self):
        stream = open_source(Union(Dataset(), Mix(Adaptive(step=1.0), StudentSamples(), TeacherSamples())), writers())
        for loss in (1.0, 2.0):
            stream.observe(Evaluated(0, {"eval_loss": loss}))
        assert origins(stream.draw(ONE, step(3))).count(STUDENT) == len(origins(stream.draw(ONE, step(3)))) - 1


class TestUnion:
    def test_each_prompt_gives_the_sequences_of_each_in_order(self):
        def student(prompts, sampling, seed):
            return [Completion([3], False) for _ in prompts]

        source = Union(TeacherSamples(), Dataset(), StudentSamples())
        stream = open_source(source, writers(student=student, num_generations=2))
        drawn = stream.draw(rows(3), step())
        assert [[one.get("origin") for one in group] for group in drawn] == [[TEACHER, DATASET, STUDENT, STUDENT]] * 3
        assert [group[1]["input_ids"] for group in drawn] == [row["input_ids"] for row in rows(3)]
        assert stream.logs() == {
            "on_policy_fraction": 0.5,
            "completion_length": pytest.approx((3 * 3 + 6) / 9),
            "clipped_fraction": pytest.approx(6 / 9),
            "empty_completions": 0.0,
        }

    def test_equal_parts_write_differently(self):
        drawn = open_source(Union(StudentSamples(), StudentSamples()), writers())
        first, second = drawn.parts[0].parts  # type: ignore[attr-defined]
        assert first.draw(rows(9), step()) != second.draw(rows(9), step())


class TestStudentSamples:
    def test_all_prompts_are_written_at_once(self):
        mine = writers(num_generations=2)
        stream = open_source(StudentSamples(temperature=0.7, top_p=0.9, top_k=5), mine)
        stream.draw(rows(3), step())
        ((prompts, sampling, _),) = mine.student.calls
        assert prompts == [[100, 5], [100, 5], [101, 5], [101, 5], [102, 5], [102, 5]]
        assert sampling == Sampling(temperature=0.7, top_p=0.9, top_k=5)

    def test_a_process_without_prompts_takes_part(self):
        mine = writers()
        assert open_source(StudentSamples(), mine).draw([], step()) == []
        assert len(mine.student.calls) == 1

    def test_seeds_differ_by_step_and_run_and_not_by_process(self):
        """A prompt gets the same completion in every process."""
        mine = writers()
        stream = open_source(StudentSamples(), mine)
        for at in (step(), step(1), step(process=1), step(seed=1), step()):
            stream.draw(ONE, at)
        seeds = [seed for _, _, seed in mine.student.calls]
        assert len(set(seeds)) == 3
        assert seeds[0] == seeds[2] == seeds[-1]

    def test_nothing_written_is_skipped_and_counted_and_eos_alone_is_kept(self):
        texts = [Completion([], False), Completion([1], True), Completion([4, 5, 6], False)]
        stream = open_source(StudentSamples(), writers(student=lambda prompts, sampling, seed: texts))
        drawn = stream.draw(rows(3), step())
        assert [[one["input_ids"][2:] for one in group] for group in drawn] == [[], [[1]], [[4, 5, 6]]]
        assert stream.logs() == {
            "on_policy_fraction": 1.0,
            "completion_length": 2.0,
            "clipped_fraction": 0.5,
            "empty_completions": 1.0,
        }
        assert stream.logs() == {"empty_completions": 0.0}


class TestStages:
    def test_one_source_after_another(self):
        source = stages((0.3, Dataset()), (0.7, Mix(0.5, StudentSamples(), TeacherSamples())))
        stream = open_source(source, writers())
        drawn = [set(origins(stream.draw(rows(), step(n)))) for n in range(20)]
        assert drawn[:6] == [{DATASET}] * 6
        assert set.union(*drawn[6:]) == {STUDENT, TEACHER}

    def test_a_source_that_comes_again_goes_on(self):
        source = stages((1, Replay(StudentSamples(), 3)), (1, Dataset()), (1, Replay(StudentSamples(), 3)))
        stream = open_source(source, writers())
        for number in (0, 1, 10):
            stream.draw(rows(9), step(number))
        assert stream.logs()["replay_size"] == 3
        assert len(stream.state_dict()) == 2
        stream.observe(Evaluated(0, {"eval_loss": 1.0}))
