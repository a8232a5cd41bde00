"""The commands and their options; the work is done in other modules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from abkd.cli._console import (
    configure_logging,
    console,
    end_processes,
    exit_codes,
    is_main_process,
    log_messages,
)
from abkd.cli._help import CacheHelp, DistillHelp, GenerateHelp, ShowHelp
from abkd.errors import ConfigError
from abkd.version import __version__

_FREE_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


class _Verbs(TyperGroup):
    """The commands, with the exit codes of :mod:`abkd.errors`."""

    def invoke(self, ctx: Any) -> Any:
        with exit_codes():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 2 bad input, 3 not finite, 4 storage, 5 server, 130 interrupted, 143 terminated, "
    "1 a bug in abkd.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"abkd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Knowledge distillation with the α-β-divergence: a large model teaches a small one."""


@app.command("distill", cls=DistillHelp, context_settings=_FREE_FLAGS)
def distill(ctx: typer.Context) -> None:
    """Train a student to match its teacher: from a recipe (YAML), from flags, or both (flags win)."""
    from abkd.cli._recipe import read_request, refuse_if_busy

    if is_main_process():
        refuse_if_busy(ctx.args)
    log_messages()  # before a recipe imports code, which is said
    recipe, extra = read_request(ctx.args, {"resume": bool, "seeds": str, "grid": dict[str, list[object]]})
    if extra["seeds"] is not None or extra["grid"] is not None:
        from abkd.cli._sweep import run_sweep

        configure_logging()
        run_sweep(recipe, extra["seeds"], extra["grid"], resume=extra["resume"], console=console())
        end_processes()
        return
    recipe.check_ready(resume=extra["resume"], output=is_main_process())

    from abkd.run import distill as run_recipe

    configure_logging()
    run_recipe(recipe, resume=extra["resume"])
    end_processes()


@app.command("generate", cls=GenerateHelp, context_settings=_FREE_FLAGS)
def generate(ctx: typer.Context) -> None:
    """Generate the teacher's completions of a recipe's prompts: for source: TeacherSamples(), or as training data."""
    from abkd.cli._recipe import read_request

    log_messages()
    recipe, extra = read_request(ctx.args, {"output_file": str})
    recipe.check_ready(output=False)

    from abkd.cli._generate import generate_text

    configure_logging()
    generate_text(recipe, extra["output_file"])


@app.command("cache", cls=CacheHelp, context_settings=_FREE_FLAGS)
def cache(ctx: typer.Context) -> None:
    """Precompute the teacher's predictions for a recipe's data: for teacher: TopKCache() or HiddenCache()."""
    from abkd.cli._recipe import read_request

    log_messages()
    recipe, _ = read_request(ctx.args, {})
    recipe.check_ready(output=False)

    from abkd.cli._cache import cache_recipe

    configure_logging()
    cache_recipe(recipe, console())
    end_processes()


@app.command("clean")
def clean(
    kinds: Annotated[
        list[str] | None, typer.Argument(metavar="[data] [teacher] [teacher-text] [native]", help="What to delete.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete all of them.")] = False,
) -> None:
    """List what abkd keeps in its cache directory (including copies of data), or delete it."""
    from abkd.cli._clean import KINDS, clean_caches

    clean_caches([*KINDS] if everything else kinds or [], console())


@app.command("shrink")
def shrink(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="The model to shrink: a directory or a hub name.")],
    layers: Annotated[int, typer.Option("--layers", min=1, help="How many layers to keep.")],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where to save the student; must be empty or new.")],
    text_file: Annotated[
        str, typer.Option("--text_file", help="Rows like the training data, to measure the influence of each layer on.")
    ],
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many of them to use.")] = 64,
    max_length: Annotated[int, typer.Option("--max_length", min=2, help="Maximum number of tokens per row.")] = 512,
) -> None:
    """Make a student from the teacher: drop the layers that change their input least."""
    from abkd.cli._shrink import shrink_model

    shrink_model(teacher, layers, output_dir, text_file, rows=rows, max_length=max_length)


@app.command("show", cls=ShowHelp, context_settings=_FREE_FLAGS)
def show(ctx: typer.Context) -> None:
    """Print a recipe with all values resolved, and its objective as a formula. Loads no model."""
    from abkd.cli._recipe import read_request
    from abkd.cli._show import print_recipe, print_sample

    recipe, extra = read_request(ctx.args, {"sample": bool}, load_code=False)
    print_recipe(recipe, console())
    if extra["sample"]:
        print_sample(recipe, console())


@app.command("demo")
def demo(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where to save student and report.")] = Path(
        "abkd-demo"
    ),
    compare: Annotated[
        bool, typer.Option("--compare", help="Forward KL, reverse KL and α-β side by side (longer).")
    ] = False,
    vision: Annotated[
        bool, typer.Option("--vision", help="Image demo: digits, a student 100 times smaller, five objectives.")
    ] = False,
    clip: Annotated[
        bool, typer.Option("--clip", help="CLIP demo: base-to-new classes, from unlabelled images.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="The same steps in about a minute, on fewer rows.")] = False,
    overwrite_output_dir: Annotated[
        bool, typer.Option("--overwrite_output_dir", help="Replace what is in output_dir.")
    ] = False,
) -> None:
    """Distil a real pretrained model on this machine: no hub, no GPU, a table and a report at the end."""
    if vision + clip + compare > 1:
        raise ConfigError("--vision, --clip and --compare select different demos: choose one")
    configure_logging()
    from abkd.demo import clip as base_to_new
    from abkd.demo import language
    from abkd.demo import vision as digits

    chosen = digits.DEMO if vision else base_to_new.DEMO if clip else language.COMPARISON if compare else language.DEMO
    result = chosen.run(output_dir, quick=quick, overwrite_output_dir=overwrite_output_dir)
    if vision or clip:
        from abkd.cli._sweep import print_sweep

        print_sweep(result, console())
        console().print(f"The report:   {output_dir / 'report.html'}", highlight=False, soft_wrap=True)
