"""Sources as values: errors, queries of a run, printing; and one that really generates."""

from __future__ import annotations

import pytest
from rich.console import Console
from source_parts import writers

from abkd.data import Collator, prompt_of
from abkd.errors import ConfigError
from abkd.generation import write_completions
from abkd.schedules import anneal, stages
from abkd.sources import (
    Adaptive,
    Dataset,
    Generators,
    Mix,
    Privileged,
    Replay,
    Step,
    StudentSamples,
    TeacherSamples,
    Union,
    fingerprint,
    is_privileged,
    needs_completions,
    needs_generation,
    open_source,
    privileged_context,
    tree,
    walk,
)
from tiny_parts import make_chatml, make_model, prepare_plain

STUDENT, DATA = StudentSamples(), Dataset()


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Mix(1.5, STUDENT, DATA), "Mix: share is a probability and must be between 0 and 1, got 1.5"),
        (lambda: Mix(True, STUDENT, DATA), "share is a probability"),
        (lambda: Mix(anneal(0.0, 2.0), STUDENT, DATA), "share is a probability"),
        (lambda: Mix(stages((1, 0.5), (1, anneal(-1, 1))), STUDENT, DATA), "share is a probability"),
        (
            lambda: Mix(stages((1, 0.5), (1, Adaptive())), STUDENT, DATA),
            "Adaptive can only be the whole share of a Mix",
        ),
        (lambda: Mix(0.5, STUDENT, Adaptive()), r"got Adaptive\(.*: it is a share, as in Mix\(Adaptive\(\)"),
        (lambda: Mix(0.5, STUDENT, "Dataset()"), "Mix expects sources, such as StudentSamples"),
        (lambda: Mix(0.5, STUDENT, stages((1, DATA))), r"put stages outside, as in stages\(.* \(0.7, Mix"),
        (lambda: Replay(DATA), r"Replay is for generated sequences, and Dataset\(\) needs none: put it next to Replay"),
        (lambda: Replay(Mix(0.5, STUDENT, DATA)), r"Dataset\(\) needs none"),
        (lambda: Replay(STUDENT, 0), "capacity must be an integer >= 1, got 0"),
        (lambda: Replay(STUDENT, 1.5), "capacity must be an integer >= 1"),
        (lambda: Replay(STUDENT, fresh=-0.1), "Replay: fresh is a probability"),
        (lambda: Replay(STUDENT, fresh=Adaptive()), "the whole share of a Mix; fresh must be a number or a schedule"),
        (lambda: Union(DATA), r"Union needs at least two sources, .*, got Union\(Dataset\(\)\)"),
        (Union, r"got Union\(\)"),
        (lambda: Union(DATA, 3), "Union expects sources, such as"),
        (lambda: Privileged(Privileged(STUDENT)), "Privileged cannot be nested"),
        (lambda: Privileged(Union(DATA, Privileged(STUDENT))), "Privileged cannot be nested"),
        (lambda: Privileged(STUDENT, 3), "context must be a string"),
        (lambda: Union(Privileged(STUDENT, "a"), Privileged(DATA, "b")), "several: 'a' and 'b'; put each row's own"),
        (lambda: Mix(0.5, Privileged(STUDENT), Privileged(DATA, "b")), "several: 'b' and None"),
        (lambda: Adaptive(start=2), "Adaptive: start must be between 0 and 1, got 2"),
        (lambda: Adaptive(step=-0.1), "Adaptive: step must be between"),
        (lambda: Adaptive(tolerance=-1), "tolerance must be a finite number >= 0"),
        (lambda: StudentSamples(temperature=-1), "temperature"),
        (lambda: open_source(stages((1, Privileged(STUDENT, "a")), (1, Privileged(DATA))), writers()), "has several"),
        (lambda: open_source(stages((1, DATA), (1, 0.5)), writers()), "source must be a source .* got 0.5"),
        (lambda: open_source(anneal(0.0, 1.0), writers()), "source must be a source"),
    ],
)
def test_what_cannot_be_meant_is_refused(build, says):
    with pytest.raises(ConfigError, match=says):
        build()


def test_what_a_run_will_need():
    gkd = Mix(0.5, StudentSamples(), Dataset())
    assert (needs_generation(gkd), needs_completions(gkd)) == (True, True)
    assert (needs_generation(Dataset()), needs_completions(Dataset())) == (False, True)
    assert (needs_generation(TeacherSamples()), needs_completions(TeacherSamples())) == (False, False)
    on_policy, off_policy = (Mix(share, StudentSamples(), Dataset()) for share in (1.0, 0))
    assert (needs_generation(on_policy), needs_completions(on_policy)) == (True, False)
    assert (needs_generation(off_policy), needs_completions(off_policy)) == (False, True)
    staged = stages((0.3, Dataset()), (0.7, Union(TeacherSamples(), Privileged(StudentSamples(), "x"))))
    assert (needs_generation(staged), needs_completions(staged)) == (True, True)
    assert [type(part).__name__ for part in walk(staged)] == [
        *("Dataset", "Union", "TeacherSamples", "Privileged", "StudentSamples")
    ]
    assert (is_privileged(staged), privileged_context(staged)) == (True, "x")
    assert (is_privileged(gkd), privileged_context(gkd)) == (False, None)
    assert (is_privileged(Privileged(gkd)), privileged_context(Privileged(gkd))) == (True, None)


def picture(source, counts):
    console = Console(width=100, color_system=None)
    with console.capture() as caught:
        console.print(tree(source, counts))
    return [line.rstrip() for line in caught.get().splitlines()]


def test_the_tree_says_what_is_in_it():
    source = stages(
        (1, Dataset()),
        (3, Mix(0.25, Replay(StudentSamples(temperature=0.5)), Privileged(TeacherSamples(), "Know [this]"))),
    )
    assert picture(source, {"dataset": 11435, "student": 11435, "teacher": 12}) == [
        "stages",
        "├── 0.25 of the run  Dataset  11,435 sequences",
        "└── 0.75 of the run  Mix",
        "    ├── 0.25  Replay(capacity=1000, fresh=0.5)",
        "    │   └── StudentSamples(temperature=0.5, top_p=1.0, top_k=0)  for 11,435 prompts",
        "    └── 0.75  Privileged(context='Know [this]')",
        "        └── TeacherSamples(temperature=1.0, top_p=1.0, top_k=0, num_beams=1)  12 sequences stored",
    ]
    assert picture(Mix(Adaptive(), Union(Dataset(), StudentSamples()), Dataset()), {}) == [
        "Mix",
        "├── Adaptive(start=0.0, step=0.1, tolerance=0.1)  Union",
        "│   ├── Dataset",
        "│   └── StudentSamples(temperature=1.0, top_p=1.0, top_k=0)",
        "└── otherwise  Dataset",
    ]


def test_numbers_that_are_equal_have_one_fingerprint():
    one, other = Mix(1, STUDENT, DATA), Mix(1.0, STUDENT, DATA)
    assert fingerprint(one, "") == fingerprint(other, "")
    assert fingerprint(stages((1, one)), "") == fingerprint(stages((1.0, other)), "")
    assert len({fingerprint(Replay(STUDENT, 9, fresh), "") for fresh in (0.5, anneal(1.0, 0.0), anneal(0.0, 1.0))}) == 3


def test_a_student_really_writes():
    """With a tiny model: greedy text does not depend on the seed, sampled text does, and both are trained on."""
    student, words = make_model("llama"), make_chatml()
    data = list(prepare_plain([{"prompt": "What? " * n, "completion": "It."} for n in (1, 2, 3)], words))

    def write(prompts, sampling, *, seed):
        return write_completions(student, words, prompts, sampling, max_new_tokens=6, seed=seed)

    for source, alike in ((StudentSamples(temperature=0.0), True), (StudentSamples(), False)):
        stream = open_source(source, Generators(student=write))
        first, again, other = (stream.draw(data, Step(number, 0.0, 3, 0)) for number in (1, 1, 2))
        assert first == again
        assert (first == other) == alike
        sequences = [one for group in first for one in group]
        assert [prompt_of(one) for one in sequences] == [prompt_of(row) for row in data]
        batch = Collator(pad_token_id=words.pad_token_id)(sequences)["batch"]
        assert batch.targets.tolist() == [
            token for one in sequences for token in one["input_ids"][len(prompt_of(one)) :]
        ]
        logs = stream.logs()
        assert logs["on_policy_fraction"] == 1.0
        assert logs["completion_length"] == pytest.approx(len(batch.targets) / 3, rel=0.5)
