"""``report.html``: one page about one run or several, built from the files of its directory and nothing else.

The page loads nothing from outside, follows the reader's light or dark setting, and is printable. Parts whose
files are missing are left out, so it works for ``abkd demo``, ``abkd distill`` and an interrupted run.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from abkd.plots import dark_css
from abkd.report.content import page_of
from abkd.report.files import RunFiles
from abkd.report.sweep import sweep_page
from abkd.storage import atomic_write, disk_errors

__all__ = ["render_report", "write_report"]


def write_report(run_dir: Path | str) -> Path:
    """Build ``report.html`` from the ``recipe.yaml``, ``run.json``, ``metrics.jsonl`` and ``demo.json`` of ``run_dir``.

    For several runs (``sweep.json``) the page compares them.

    Returns:
        The path of the page. An existing page is replaced atomically.

    Raises:
        DataError: ``run_dir`` contains none of these files, or one that cannot be read.
        StorageError: the page cannot be written.
    """
    text = render_report(run_dir)
    page = Path(run_dir) / "report.html"
    with disk_errors(str(page), "Free some disk space, or choose another place"):
        atomic_write(page, text.encode(errors="backslashreplace"))
    return page


def render_report(run_dir: Path | str) -> str:
    """The page as text; see :func:`write_report`."""
    files = RunFiles.read(Path(run_dir))
    environment = Environment(
        loader=PackageLoader("abkd.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    page = sweep_page(files) if files.sweep else page_of(files)
    return template.render(page=page, figure_css=Markup(dark_css(".figure")))
