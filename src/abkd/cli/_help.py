"""Help that fits one screen: the main names with their defaults, for verbs that take every name of a recipe."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from abkd.output_dir import DEFAULT
from abkd.settings import Settings

_WIDTH = 100


class Option(NamedTuple):
    """One line of help."""

    name: str
    meaning: str
    required: bool = False

    @property
    def default(self) -> str:
        """As it is written in a recipe; "" for none."""
        default = _DEFAULTS.get(self.name)
        if self.required:
            return "required"
        return "" if default is None else "false" if default is False else str(default)


_OF_TRANSFORMERS = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "bf16": False}
_OTHERS = {"output_dir": DEFAULT, "use_peft": False, "resume": False, "sample": False}
_DEFAULTS = {each.name: each.default for each in fields(Settings)} | _OF_TRANSFORMERS | _OTHERS

GROUPS: dict[str, tuple[Option, ...]] = {
    "Models and data": (
        Option("task", "or image-classification; CLIP: see docs/vision.md"),
        Option("model_name_or_path", "the student: a directory or a hub name", required=True),
        Option("teacher_model_name_or_path", "the teacher, with the same tokenizer or classes"),
        Option("train_file", "JSONL, CSV, parquet; .gz; several: 'data/*.jsonl'; images: .npz"),
        Option("train_dir", "images, a folder a class"),
        Option("dataset_name", "a dataset on the hub; --streaming reads it as it comes"),
        Option("eval_file", "held-out rows, if you have them"),
        Option("eval_fraction", "else the share of the training rows that is held out: 0.05"),
        Option("output_dir", "gets the student, metrics.jsonl and report.html"),
    ),
    "Objective": (
        Option("divergence", "distance to the teacher"),
        Option("kd_temperature", "softmax temperature of both models in the loss"),
        Option("kd_ratio", "r: the loss is (1 - r)·CE + r·divergence"),
        Option("ce_weight", "the general form: ce_weight·CE"),
        Option("kd_weight", "  + kd_weight·divergence"),
        Option("max_length", "tokens of prompt and completion together"),
        Option("apply_chat_template", "plain rows as turns of a chat; else where both models have one"),
    ),
    "Who writes, who teaches": (
        Option("source", "whose text: StudentSamples(), Mix(...), ..."),
        Option("lmbda", "short: the share of batches that the student writes"),
        Option("max_completion_length", "tokens that a model writes at most"),
        Option("teacher", "its predictions: TopKCache(k=64), HiddenCache(), EMA()"),
    ),
    "Training": (
        Option("learning_rate", "peak step size"),
        Option("num_train_epochs", "passes over the data"),
        Option("per_device_train_batch_size", "sequences at once"),
        Option("bf16", "compute in bfloat16 (weights stay float32)"),
        Option("use_peft", "train LoRA adapters: lora_r, lora_alpha, ..., merge_adapter"),
        Option("save_dtype", "of the saved student: bfloat16, float32, ...; else as its directory"),
        Option("overwrite_output_dir", "replace what is in output_dir"),
    ),
}
DISTILL = GROUPS | {
    "This command": (
        Option("resume", "go on from the last checkpoint in output_dir"),
        Option("seeds", "1,2,3: a run for each, then mean ± std in one table"),
        Option("grid", "and for each setting: '{kd_weight: [1, 8], ...}', any field"),
    )
}
SHOW = {"This command": (Option("sample", "print the first training row too, trained tokens coloured"),)}
CACHE = {
    "What is cached": (
        Option("teacher", "TopKCache(k=64): under 300 bytes a token; HiddenCache(): every class, exactly"),
        Option("per_device_eval_batch_size", "sequences that the teacher reads at once"),
    )
}
GENERATE = {
    "What is written": (
        Option("output_file", "a .jsonl, which is a train_file too; else where abkd distill looks for it"),
        Option("source", "its TeacherSamples(temperature=1.0, top_p=1.0, num_beams=1) says how"),
        Option("max_completion_length", "tokens that the teacher writes at most"),
        Option("teacher_model_server_url", "let an OpenAI-compatible server write, such as vLLM"),
        Option("per_device_eval_batch_size", "prompts that are answered together"),
    )
}
_FOOTER = "Every field of transformers.TrainingArguments is a flag too, and every flag may be a line of RECIPE."


class DistillHelp(TyperCommand):
    """``abkd distill --help``."""

    groups = DISTILL
    example = 'abkd distill recipe.yaml --divergence "AlphaBeta(0.2, 0.7)" --bf16'

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, meaning, the main options in groups, and an example."""
        console = Console(width=_WIDTH)
        with console.capture() as text:
            console.print(f"[bold]Usage:[/] {ctx.command_path} \\[RECIPE] \\[--name value] ...", highlight=False)
            console.print(f"{self.help}\n", highlight=False, markup=False)
            console.print(_table(self.groups))
            console.print(f"{_FOOTER}\nExample: {self.example}", style="dim", highlight=False, markup=False)
        formatter.write(text.get())


class CacheHelp(DistillHelp):
    """``abkd cache --help``."""

    groups = CACHE
    example = 'abkd cache recipe.yaml --teacher "TopKCache(k=64)"'


class GenerateHelp(DistillHelp):
    """``abkd generate --help``."""

    groups = GENERATE
    example = 'abkd generate recipe.yaml --source "TeacherSamples(temperature=0)" --output_file teacher.jsonl'


class ShowHelp(DistillHelp):
    """``abkd show --help``."""

    groups = SHOW
    example = "abkd show quickstart > recipe.yaml"


def _table(groups: dict[str, tuple[Option, ...]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for title, options in groups.items():
        table.add_row(f"[bold]{title}[/]")
        for option in options:
            default = f" [dim]\\[{option.default}][/]" if option.default else ""
            table.add_row(f"  [cyan]--{option.name}[/]", f"{option.meaning}{default}")
    return table
