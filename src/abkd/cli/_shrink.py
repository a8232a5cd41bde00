"""``abkd shrink``: make a student of the teacher's most influential layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from abkd.cli._console import console
from abkd.errors import ConfigError, OutputDirError
from abkd.models.folders import check_model_folder, stored_layers
from abkd.output_dir import check_inputs, check_place
from abkd.storage import in_full


def shrink_model(teacher: str, layers: int, output_dir: Path, text_file: str, *, rows: int, max_length: int) -> None:
    """Keep the ``layers`` of the teacher that matter most on ``rows`` rows of ``text_file``; save model and tokenizer.

    Raises:
        OutputDirError: ``output_dir`` is in use.
        DataError: no usable rows.
        ConfigError: there is no model, or it has no more than ``layers`` layers.
    """
    output_dir = Path(in_full(str(output_dir)))
    _check_free(output_dir)
    check_inputs(output_dir, {"TEACHER": [teacher], "--text_file": [text_file]})
    check_model_folder(teacher, "TEACHER")
    _check_layers(teacher, layers, stored_layers(teacher))

    from abkd.data import load_rows, prepare_dataset
    from abkd.models.adapters import has_adapters
    from abkd.models.loading import load_causal_lm, load_tokenizer
    from abkd.models.shrink import decoder_layers, layer_influence, shrink

    texts = load_rows(text_file)[:rows]
    tokenizer = load_tokenizer(teacher, what="TEACHER")
    examples = prepare_dataset(texts, tokenizer, max_length=max_length, on_bad_row="drop", name=text_file)
    model = load_causal_lm(teacher, what="TEACHER", dtype="auto")
    if has_adapters(model):
        model = model.merge_and_unload()
    there = len(decoder_layers(model)[1])
    _check_layers(teacher, layers, there)
    with Progress(console=console(), transient=True) as progress:
        bar = progress.add_task(f"measuring {there} layers on {len(examples)} rows", total=len(examples))
        influence = layer_influence(
            model,
            [example["input_ids"] for example in examples],
            progress=lambda done, _: progress.update(bar, completed=done),
        )
    student, kept = shrink(model, layers, influence)
    student.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    console().print(influence_table(influence, kept))
    console().print(
        f"{output_dir}: {layers} of {there} layers, {student.num_parameters() / 1e6:.3g} M of "
        f"{model.num_parameters() / 1e6:.3g} M parameters. Next: abkd distill --model_name_or_path {output_dir} "
        f"--teacher_model_name_or_path {teacher} --train_file ...",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def influence_table(influence: Sequence[float], kept: Collection[int]) -> Table:
    """One line per layer: its influence as a number and as a bar, and whether it is kept."""
    table = Table("layer", "influence", "", "kept", caption="influence: 1 - cosine of a layer's input and output")
    most = max(influence)
    for layer, value in enumerate(influence):
        bar = "█" * round(20 * value / most) if most > 0 else ""
        stays = layer in kept
        table.add_row(str(layer), f"{value:.4f}", bar, "yes" if stays else "", style="" if stays else "dim")
    return table


def _check_layers(teacher: str, layers: int, there: int | None) -> None:
    """Raise ConfigError if the teacher has no more than ``layers`` layers; ``there`` is None while unknown."""
    if there is not None and layers >= there:
        raise ConfigError(f"--layers must be < {there}, the number of layers of {teacher!r}, got {layers}")


def _check_free(output_dir: Path) -> None:
    check_place(output_dir)
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise OutputDirError(f"--output_dir must be empty or new, but {str(output_dir)!r} is in use; name another")
