"""The contestants of ``benchmarks.step``: each trains the same student on the same rows in the same order."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from abkd import AlphaBeta, DistillConfig, Divergence, ForwardKL
from abkd.data import Collator, Example, TokenizedDataset
from benchmarks import _step_paper as paper
from benchmarks._step_pairs import Pair
from benchmarks._training import Clock, Contestant, InOrder, Ours, arguments


def _abkd(divergence: Divergence) -> Callable[[Pair, int, Clock, str], None]:
    def run(pair: Pair, steps: int, clock: Clock, output_dir: str) -> None:
        given = arguments(steps, output_dir, pair.batch_size)
        config = DistillConfig(**given, divergence=divergence, max_length=pair.max_length)
        Ours(
            pair.student,
            pair.teacher,
            config,
            train_dataset=TokenizedDataset(pair.examples),
            processing_class=pair.tokenizer,
            callbacks=[clock],
        ).train()

    return run


def _sft(pair: Pair, steps: int, clock: Clock, output_dir: str) -> None:
    trainer = InOrder(
        pair.student,
        TrainingArguments(**arguments(steps, output_dir, pair.batch_size)),
        data_collator=_labelled,
        train_dataset=list(pair.examples),  # type: ignore[arg-type]
        callbacks=[clock],
    )
    trainer.train()


def _labelled(rows: Sequence[Example]) -> dict[str, Tensor]:
    """Right-padded inputs, and the completion as labels."""
    ids, attention, trained = paper.padded(rows, max(len(row["input_ids"]) for row in rows))
    return {"input_ids": ids, "attention_mask": attention, "labels": torch.where(trained > 0, ids, -100)}


def _teacher_forward(pair: Pair, steps: int, clock: Clock, output_dir: str) -> None:
    collate, backbone = Collator(0), pair.teacher.eval().base_model
    clock.start()
    for rows in pair.batches(steps):
        with torch.no_grad():
            backbone(**collate(rows)["batch"].teacher.inputs, use_cache=False)
        clock.step()


def _gkd(beta: float) -> Callable[[Pair, int, Clock, str], None]:
    def run(pair: Pair, steps: int, clock: Clock, output_dir: str) -> None:
        gkd: Any = importlib.import_module("trl.experimental.gkd")
        ordered = type("_OrderedGKD", (gkd.GKDTrainer,), {"_get_train_sampler": InOrder._get_train_sampler})
        # GKDTrainer enables gradient checkpointing by default, the others do not
        given = arguments(steps, output_dir, pair.batch_size, gradient_checkpointing=False)
        config = gkd.GKDConfig(**given, lmbda=0.0, beta=beta, max_length=pair.max_length)
        from datasets import Dataset

        data = Dataset.from_list([_for_gkd(row) for row in pair.examples])
        ordered(
            model=pair.student,
            teacher_model=pair.teacher,
            args=config,
            train_dataset=data,
            processing_class=pair.tokenizer,
            callbacks=[clock],
        ).train()

    return run


def _for_gkd(row: Example) -> dict[str, Any]:
    """A row as tokens; GKD's collator requires the prompt's text, but does not read it."""
    mask = [int(flag) for flag in row["trained"]]
    return {"prompt": "", "input_ids": row["input_ids"], "completion_mask": mask}


def _trl_loss(beta: float) -> Callable[[Pair, int, Clock, str], None]:
    """The loss and batch layout of TRL's stable trainer (which itself is on-policy only), in a plain Trainer."""

    def run(pair: Pair, steps: int, clock: Clock, output_dir: str) -> None:
        divergence: Any = importlib.import_module("trl.trainer.distillation_trainer")._chunked_divergence_loss
        teacher = pair.teacher.eval()

        class _Stable(InOrder):
            def compute_loss(
                self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
            ) -> Any:
                kept = inputs.pop("completion_mask")
                span = slice(-kept.shape[1] - 1, -1)
                student_hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, span]
                with torch.no_grad():
                    teacher_hidden = teacher.base_model(**inputs, use_cache=False).last_hidden_state[:, span]
                heads = [each.get_output_embeddings().weight for each in (model, teacher)]
                loss, _entropy, _count = divergence(student_hidden, teacher_hidden, *heads, kept, beta, kept.sum())
                return loss

        _Stable(
            pair.student,
            TrainingArguments(**arguments(steps, output_dir, pair.batch_size)),
            data_collator=_prompts_left,
            train_dataset=list(pair.examples),  # type: ignore[arg-type]
            callbacks=[clock],
        ).train()

    return run


def _prompts_left(rows: Sequence[Example]) -> dict[str, Tensor]:
    """Prompts padded on the left, completions on the right, the layout of that trainer."""
    starts = [row["trained"].index(True) for row in rows]
    before = max(starts)
    after = max(len(row["input_ids"]) - start for row, start in zip(rows, starts, strict=True))
    ids, attention = torch.zeros(2, len(rows), before + after, dtype=torch.int64)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        place = slice(before - start, before - start + len(row["input_ids"]))
        ids[i, place] = torch.tensor(row["input_ids"])
        attention[i, place] = 1
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "position_ids": positions,
        "completion_mask": attention[:, before:],
    }


def _paper(loss: paper.TokenLoss) -> Callable[[Pair, int, Clock, str], None]:
    def run(pair: Pair, steps: int, clock: Clock, output_dir: str) -> None:
        clock.start()
        batches = pair.batches(steps)
        paper.train(pair.student, pair.teacher, batches, loss=loss, pad_to=pair.max_length, after_step=clock.step)

    return run


CONTESTANTS = {
    each.name: each
    for each in (
        Contestant("sft", _sft, teacher=False),
        Contestant("teacher forward", _teacher_forward, student=False),
        Contestant("abkd forward KL", _abkd(ForwardKL()), same_loss="forward KL"),
        Contestant("abkd α-β", _abkd(AlphaBeta(0.2, 0.7)), same_loss="α-β"),
        Contestant("trl gkd forward KL", _gkd(0.0), package="trl", slow=True, same_loss="forward KL"),
        Contestant("trl gkd default", _gkd(0.5), package="trl", slow=True),
        Contestant("trl stable loss", _trl_loss(0.0), package="trl", slow=True, same_loss="forward KL"),
        Contestant("paper forward KL", _paper(paper.cross_entropy_with_teacher), slow=True),
        Contestant("paper α-β", _paper(paper.alpha_beta), slow=True, same_loss="α-β"),
    )
}
