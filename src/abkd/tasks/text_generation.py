"""Text generation: causal language models that share a tokenizer, and rows of tokens."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abkd.config import DistillConfig
from abkd.data import (
    Collator,
    Example,
    Rows,
    RowStream,
    StreamedDataset,
    TokenizedDataset,
    check_same_tokenizer,
    describe_sample,
    describe_start,
    load_rows,
)
from abkd.data.formats import has_completions
from abkd.data.vocabulary import vocabulary_size
from abkd.metrics import METRICS
from abkd.models.adapters import write_adapter_card
from abkd.models.folders import broken_model
from abkd.models.language import CausalRows
from abkd.models.loading import load_causal_lm, load_tokenizer, placed, teacher_options
from abkd.run_inputs import DataSettings, ModelSettings
from abkd.settings import Settings
from abkd.sources import ensure_teacher_text, known_sequences, needs_teacher_text
from abkd.tasks._lengths import check_lengths
from abkd.tasks._row_data import read_rows
from abkd.tasks._start import check_mass, check_padding
from abkd.tasks._text_data import first_example, plain_text, prepare_data
from abkd.tasks._text_models import load_models, own_tokenizer
from abkd.tasks._writer import teacher_writer
from abkd.tasks.base import CacheJob, Given, OpenTask, Task
from abkd.teachers import identity

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("abkd")


class TextGeneration(Task):
    """A row is a token of a completion."""

    name = "text-generation"
    row_noun = "response tokens"
    unit = "token"
    fields = frozenset(
        {
            *(
                "max_length",
                "packing",
                "group_by_length",
                "apply_chat_template",
                "lm_coef",
                "pretrain_file",
                "streaming",
            ),
            *("source", "lmbda", "seq_kd", "max_completion_length", "num_generations", "generation_kwargs"),
            *("teacher_model_server_url", "eval_samples", "save_dtype", "merge_adapter", "use_peft"),
        }
    )
    metrics = (METRICS["perplexity"], METRICS["r_llh"], METRICS["r_cvg"])
    peft_task_type = "CAUSAL_LM"
    embeds_tokens = True
    data_hint = "no data: set train_file (JSONL, CSV or parquet) or dataset_name (a hub name)"

    def model_problem(self, name: str, field: str, allow_code: Sequence[str]) -> str | None:
        return f"{field}: {fault}" if (fault := broken_model(name)) else None

    def read(self, data: DataSettings, settings: Settings, *, seed: int) -> tuple[Rows | RowStream, Rows | None]:
        train, held_out = read_rows(data, seed=seed)
        return train, None if held_out is None else _with_completions(held_out)

    def sample(self, models: ModelSettings, data: DataSettings, settings: Settings) -> Iterator[str | Text]:
        source = data.train_file or data.dataset_name
        assert source is not None  # checked when the recipe is read
        rows = load_rows(source, config=data.dataset_config, split=data.dataset_train_split)
        tokenizer = load_tokenizer(models.model_name_or_path, what="model_name_or_path", revision=models.model_revision)
        yield from ("", describe_sample(first_example(rows, tokenizer, settings, _tokenizers(models)), tokenizer))

    def open(self, given: Given, args: DistillConfig) -> OpenTextGeneration:
        models = load_models(given, args)
        opened, chunks = OpenTextGeneration(args, models), plain_text(given.pretrain, models.tokenizer, args.max_length)
        opened.train = opened.checked(given.train, "train", chunks)
        opened.held_out = opened.checked(given.held_out, "eval")
        return opened

    def cache_job(self, given: Given, args: DistillConfig, teacher: str) -> CacheJob:
        options = teacher_options(args.teacher_model_init_kwargs, args.device)
        tokenizer, revision = own_tokenizer(given.student, args), options.get("revision")
        theirs = load_tokenizer(teacher, what="teacher_model_name_or_path", revision=revision)
        check_same_tokenizer(tokenizer, theirs)
        args.lm_coef, args.packing = 0.0, False  # neither affects the teacher
        both = (("train", given.train), ("eval", given.held_out))
        prepared = [prepare_data(rows, tokenizer, args, name, teachers={teacher: theirs}) for name, rows in both]
        datasets = [dataset for dataset in prepared if isinstance(dataset, TokenizedDataset)]

        def load() -> CausalRows:
            model = placed(load_causal_lm(teacher, what="teacher_model_name_or_path", **options), args.device)
            return CausalRows(model.eval().requires_grad_(False))

        return CacheJob(
            examples=_cached_sequences(args, tokenizer, datasets, teacher, revision),
            load=load,
            identity=identity(teacher, revision, tokenizer),
            about={"max_length": args.max_length, "data": {each.name: each.fingerprint for each in datasets}},
            batch_size=args.per_device_eval_batch_size,
            tokens=vocabulary_size(tokenizer),
        )


class OpenTextGeneration(OpenTask):
    """Two causal language models, and tokenised rows."""

    def checked(
        self, dataset: Any, name: str, chunks: Sequence[Sequence[int]] | None = None
    ) -> TokenizedDataset | StreamedDataset | None:
        """The rows of a dataset, tokenised and checked for their length."""
        teachers = self.models.teacher_tokenizers
        prepared = prepare_data(dataset, self.models.tokenizer, self.args, name, chunks, teachers=teachers)
        if prepared is not None:
            check_lengths(prepared, self.models, self.args)
        return prepared

    def prepare(self, dataset: Any) -> TokenizedDataset:
        prepared = self.checked(dataset, "eval")
        assert isinstance(prepared, TokenizedDataset)  # streams raise for evaluation
        return prepared

    @property
    def collate(self) -> Collator:
        return Collator(self.models.padding)

    @property
    def max_rows(self) -> int:
        return self.args.per_device_train_batch_size * self.args.max_length

    def summarize(self, totals: Mapping[str, float]) -> dict[str, float]:
        rows = max(totals["rows"], 1.0)
        found = {"perplexity": _exp(totals["cross_entropy"] / rows)}
        if "teacher_cross_entropy" in totals:
            found["teacher_perplexity"] = _exp(totals["teacher_cross_entropy"] / rows)
        return found

    def check_teacher(self, metrics: Mapping[str, float]) -> None:
        if "teacher_perplexity" in metrics:
            warn_of_weak_teacher(metrics["perplexity"], metrics["teacher_perplexity"])

    def before_training(self, *, sharded: bool, writes: bool, evaluates_first: bool) -> None:
        if isinstance(self.train, TokenizedDataset | StreamedDataset):
            for sentence, warning in describe_start(self.train, self.models.tokenizer, self.args.max_length):
                logger.log(logging.WARNING if warning else logging.INFO, "%s", sentence)
        if not sharded:
            check_mass(self)
        if not writes:
            check_padding(self)

    def describe(self) -> dict[str, object]:
        train = self.train
        assert isinstance(train, TokenizedDataset | StreamedDataset)
        return {
            "train_tokens": None if isinstance(train, StreamedDataset) else train.trained_tokens,
            "truncated_tokens": train.account.cut_tokens,
            "apply_chat_template": train.account.rendered > 0,
        }

    def save_extras(self, directory: Path) -> None:
        """Write a model card for an adapter; transformers has saved the config and the tokenizer."""
        write_adapter_card(directory)


def _tokenizers(models: ModelSettings) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers of the teachers of a recipe, by name."""
    given, what = models.teacher_model_name_or_path or [], "teacher_model_name_or_path"
    names = [given] if isinstance(given, str) else given
    return {name: load_tokenizer(name, what=what, revision=models.teacher_model_revision) for name in names}


def _with_completions(held_out: Rows) -> Rows | None:
    """Held-out rows; None if they are prompts without completions, which cannot be evaluated."""
    if any(has_completions(row) for row in held_out[:1]):
        return held_out
    logger.info("abkd: the held-out rows have no completions, so nothing is evaluated on them")
    return None


def _cached_sequences(
    args: DistillConfig,
    tokenizer: PreTrainedTokenizerBase,
    datasets: list[TokenizedDataset],
    teacher: str,
    revision: str | None,
) -> Iterator[Example]:
    """The sequences that a run reads: those that its source makes of the training rows, and the held-out rows."""
    text = None
    if needs_teacher_text(args.source):
        url = args.teacher_model_server_url
        writer = teacher_writer(args, tokenizer, name=teacher, revision=revision, url=url)
        text = ensure_teacher_text(args.source, datasets[0], replace(writer, write=None))  # from abkd generate
    yield from known_sequences(args.source, datasets[0], text)
    for held_out in datasets[1:]:
        yield from held_out


def warn_of_weak_teacher(perplexity: float, teacher_perplexity: float) -> None:
    """Log a warning if the teacher is no better than the student on this data."""
    if teacher_perplexity >= perplexity:
        logger.warning(
            "abkd: on the held-out rows the teacher (perplexity %.4g) is no better than the student (%.4g): the "
            "student may get worse by imitating it. Fine-tune the teacher on this data first, or add ce_weight to "
            "learn from the text itself",
            teacher_perplexity,
            perplexity,
        )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
