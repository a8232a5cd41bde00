"""Special cases in which methods must coincide: real steps of the shipped recipes, on tiny models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from abkd import Dense, Divergence, ForwardKL, Objective, SkewForwardKL, SkewReverseKL, linear_divergence
from abkd.data import Example, TokenizedDataset, prompt_of, with_completion
from abkd.generation import Sampling, write_completions
from abkd.origin import Origin
from abkd.recipe import load
from abkd.terms import TokenLogProbs
from objective_parts import loss_of
from training_parts import gap, llama, rows, teacher, tokenizer, trainer, weights

GREEDY = "StudentSamples(temperature=0)"
PLAIN: dict[str, Any] = {  # a step of plain gradient descent moves the weights by a multiple of the gradient
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": None,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_steps": 2,
    "per_device_train_batch_size": 12,
    "gradient_accumulation_steps": 1,
    "max_length": 64,
    "max_completion_length": 6,
    "lm_coef": 0.0,
    "logging_steps": 1,
    "eval_strategy": "no",
    "save_strategy": "no",
    "save_steps": None,
    "eval_steps": None,
}


class Learnt:
    """A student after two steps: ``weights``, and the ``losses`` of the steps."""

    def __init__(self, path: Path, recipe: str | None = None, data: Any = None, **options: Any) -> None:
        config = {} if recipe is None else dict(load(recipe).config)
        made = trainer(path, llama(0), data=data, **{**config, **PLAIN, **options})
        self.rows: Any = made.train_dataset
        made.train()
        self.weights = weights(made.model)
        self.losses = [record["loss"] for record in made.state.log_history if "loss" in record]
        assert gap(self.weights, llama(0)) > 1e-4

    def is_as(self, other: Learnt, within: float = 1e-6) -> bool:
        return gap(self.weights, other.weights) < within and self.losses == pytest.approx(
            other.losses, rel=100 * within
        )


def _terms_at(recipe: str, progress: float) -> Any:
    """The terms of a recipe at one point of its run, used for this whole run."""
    return list(load(recipe).objective().at(progress))


def _written_by_the_teacher(path: Path, sampling: Sampling) -> TokenizedDataset:
    """The teacher's completions of the rows, as ordinary data."""
    data: Any = trainer(path, llama(0), max_length=64).train_dataset
    examples: list[Example] = [data[i] for i in range(len(rows()))]
    prompts = [prompt_of(row) for row in examples]
    written = write_completions(teacher(), tokenizer(), prompts, sampling, max_new_tokens=6, classes=340)
    return TokenizedDataset(
        [with_completion(row, w.ids, 0, privileged=False) for row, w in zip(examples, written, strict=True)]
    )


# ---- SeqKD


def test_seqkd_is_cross_entropy_with_the_teachers_best_text_as_if_it_were_data(tmp_path: Path) -> None:
    text = _written_by_the_teacher(tmp_path / "text", Sampling(temperature=0, num_beams=5))
    as_data = Learnt(tmp_path / "b", data=text, ce_weight=1.0, kd_weight=0.0)
    assert Learnt(tmp_path / "a", "seqkd").is_as(as_data)


def test_seqkd_is_forward_kl_with_a_teacher_that_is_sure_of_that_text() -> None:
    student, targets = torch.randn(9, 40, dtype=torch.float64, requires_grad=True), torch.randint(40, (9,))
    sure = torch.full((9, 40), -torch.inf, dtype=torch.float64).scatter_(1, targets[:, None], 0.0)
    config = load("seqkd").config
    how = {"targets": targets, "ce_weight": config["ce_weight"], "kd_weight": config["kd_weight"]}
    found = []
    for teach, options in ((None, how), (sure, {})):
        rows = None if teach is None else Dense(teach)
        loss = linear_divergence(Dense(student), rows, ForwardKL(), **options).loss
        found.append((loss.detach(), torch.autograd.grad(loss, student)[0]))
    torch.testing.assert_close(found[0], found[1])


# ---- GKD, ImitKD, MiniLLM


@pytest.mark.parametrize(("weight", "limit"), [(1e-5, "ForwardKL()"), (1 - 1e-5, "ReverseKL()")])
def test_gkd_tends_to_forward_and_reverse_kl_once_it_is_scaled(tmp_path: Path, weight: float, limit: str) -> None:
    source = f"Mix(0.5, {GREEDY}, Dataset())"
    scaled = {"divergence": f"JensenShannon({weight!r})", "kd_weight": 1 / min(weight, 1 - weight)}
    near = Learnt(tmp_path / "a", "gkd", source=source, **scaled)
    there = Learnt(tmp_path / "b", source=source, divergence=limit)
    assert near.is_as(there, within=3e-4)
    assert gap(near.weights, there.weights) > 0


def test_gkd_of_the_students_text_alone_by_reverse_kl_is_the_minillm_recipe_and_f_distills(tmp_path: Path) -> None:
    gkd = Learnt(tmp_path / "a", "gkd", source=f"Mix(1.0, {GREEDY}, Dataset())", divergence="ReverseKL()")
    minillm = Learnt(tmp_path / "b", "minillm_on_policy_reverse_kl", source=GREEDY)
    fdistill = Learnt(tmp_path / "c", source=GREEDY, terms=_terms_at("fdistill_rkl", 1.0))
    assert gkd.is_as(minillm)
    assert fdistill.is_as(minillm)


def test_without_the_students_text_gkd_and_imitkd_are_what_they_compare_on_the_data(tmp_path: Path) -> None:
    gkd = Learnt(tmp_path / "a", "gkd", source="Dataset()")
    assert gkd.is_as(Learnt(tmp_path / "b", divergence="JensenShannon(0.5)"))
    imitkd = Learnt(tmp_path / "c", "imitkd", source=f"Mix(anneal(0.0, 0.0), {GREEDY}, Dataset())")
    assert imitkd.is_as(Learnt(tmp_path / "d", divergence="ForwardKL()"))


# ---- DistiLLM and ABKD's table 8


@pytest.mark.parametrize(
    ("recipe", "skew", "limit"),
    [("distillm", SkewForwardKL, "ForwardKL()"), ("distillm_skew_reverse", SkewReverseKL, "ReverseKL()")],
)
def test_distillm_without_skew_is_the_kl_and_with_it_is_bounded(
    tmp_path: Path, recipe: str, skew: Any, limit: str
) -> None:
    own: Divergence = load(recipe).config["divergence"]
    assert own == skew(0.1)
    barely = Learnt(tmp_path / "a", recipe, divergence=skew(1e-7))
    assert barely.is_as(Learnt(tmp_path / "b", divergence=limit), within=1e-5)
    apart = torch.randn(50, 30) * 40  # nothing in common
    of_each = linear_divergence(Dense(apart), Dense(apart.flip(0)), own).divergence
    assert 2.0 < of_each.max() <= -math.log(0.1) + 1e-6


def test_before_its_first_rise_an_adaptive_share_is_the_data_alone(tmp_path: Path) -> None:
    for name in ("distillm", "gpt2_dolly_abkd_adaptive"):
        divergence = load(name).config["divergence"]
        assert Learnt(tmp_path / name, name).is_as(Learnt(tmp_path / f"{name} data", divergence=divergence))


def test_table_8_meets_the_plain_recipe_where_no_text_is_the_students_and_on_policy_where_all_is(
    tmp_path: Path,
) -> None:
    fixed = Learnt(tmp_path / "a", "gpt2_dolly_abkd")
    assert Learnt(tmp_path / "b", "gpt2_dolly_abkd_mixed", source=f"Mix(0.0, {GREEDY}, Dataset())").is_as(fixed)
    on_policy = Learnt(tmp_path / "c", "gpt2_dolly_abkd_on_policy", source=GREEDY)
    assert Learnt(tmp_path / "d", "gpt2_dolly_abkd_mixed", source=f"Mix(1.0, {GREEDY}, Dataset())").is_as(on_policy)
    always = f"Mix(Adaptive(start=1.0), Replay({GREEDY}, capacity=1000, fresh=anneal(1.0, 1.0)), Dataset())"
    assert Learnt(tmp_path / "e", "gpt2_dolly_abkd_adaptive", source=always).is_as(on_policy)
    assert gap(fixed.weights, on_policy.weights) > 1e-4


# ---- f-DISTILL


def test_f_distills_kl_is_plain_forward_kl_on_the_teachers_text(tmp_path: Path) -> None:
    text = _written_by_the_teacher(tmp_path / "text", Sampling(temperature=0))
    source = "TeacherSamples(temperature=0)"
    kl = Learnt(tmp_path / "a", source=source, terms=_terms_at("fdistill_kl", 1.0))
    assert kl.is_as(Learnt(tmp_path / "b", data=text, divergence="ForwardKL()"))


@pytest.mark.parametrize("method", ["kl", "rkl", "js", "js_exact", "tvd"])
def test_pre_distillation_is_forward_kl_with_labels_on_the_data(method: str) -> None:
    recipe = load(f"fdistill_{method}")
    assert repr(recipe.config["source"](0.69)) == "Dataset()"
    assert recipe.objective().at(0.69) == Objective(divergence=ForwardKL(), ce_weight=0.2, kd_weight=0.8).at(0.0)
    assert {term.origin for term in recipe.objective().at(0.7)} <= {"teacher", "student"}


def _on_both_texts(recipe: str, history: TokenLogProbs | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a recipe's last stage on six rows of the teacher's text and four of the student's; and p, q."""
    p, q = torch.randn(2, 10, 8, dtype=torch.float64).unbind()
    origin = torch.tensor([Origin.TEACHER.code] * 6 + [Origin.STUDENT.code] * 4)
    loss = loss_of(
        load(recipe).objective(),
        Dense(q),
        Dense(p),
        torch.zeros(10, dtype=torch.long),
        torch.ones(10, dtype=torch.float64),
        progress=1.0,
        origin=origin,
        history=history,
    )
    return loss.loss, p.softmax(-1), q.softmax(-1)


def test_f_distills_total_variation_is_a_quarter_of_the_absolute_difference_on_either_text() -> None:
    loss, p, q = _on_both_texts("fdistill_tvd")
    apart = (p - q).abs().sum(-1)
    torch.testing.assert_close(loss, 0.25 * apart[:6].mean() + 0.25 * apart[6:].mean())


def test_f_distills_jensen_shannon_is_its_two_printed_terms() -> None:
    loss, p, q = _on_both_texts("fdistill_js")
    m = 0.5 * p + 0.5 * q
    of_teacher, of_student = (p * (p / m).log()).sum(-1)[:6].mean(), (q * (q / m).log()).sum(-1)[6:].mean()
    torch.testing.assert_close(loss, 0.5 * of_teacher + 0.5 * of_student)


def test_the_exact_one_is_the_published_one_where_the_tokens_before_tell_nothing(tmp_path: Path) -> None:
    same, one_text = torch.randn(10, dtype=torch.float64), torch.zeros(10, dtype=torch.long)
    torch.manual_seed(1)
    published = _on_both_texts("fdistill_js")[0]
    torch.manual_seed(1)
    torch.testing.assert_close(_on_both_texts("fdistill_js_exact", TokenLogProbs(same, same, one_text))[0], published)
    source = f"Union(TeacherSamples(temperature=0), {GREEDY})"
    steps = {
        (name, length): Learnt(
            tmp_path / f"{name} {length}",
            source=source,
            terms=_terms_at(f"fdistill_{name}", 1.0),
            max_completion_length=length,
        )
        for name in ("js", "js_exact")
        for length in (1, 6)
    }
    assert steps["js_exact", 1].is_as(steps["js", 1])  # before the first token both are equally probable
    assert not steps["js_exact", 6].is_as(steps["js", 6], within=1e-4)


# ---- context distillation


def test_context_distillation_without_a_context_is_on_policy_reverse_kl(tmp_path: Path) -> None:
    """At a step: the teacher, which is another model here, reads what the student reads."""
    chat = {"apply_chat_template": True}
    without = Learnt(tmp_path / "a", "context_distillation", source=f"Privileged({GREEDY}, context='')", **chat)
    recipe = load("context_distillation").config["source"]
    plain = Learnt(tmp_path / "b", "minillm_on_policy_reverse_kl", source=GREEDY, **chat)
    assert without.is_as(plain)
    reading = f"Privileged({GREEDY}, context={recipe.context!r})"
    context = Learnt(tmp_path / "c", "context_distillation", source=reading, **chat)
    assert not context.is_as(plain, within=1e-4)
