"""Figures as SVG text that follows the reader's light or dark setting."""

from __future__ import annotations

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

from abkd.plots.style import DARK, FONTS, STYLE


def to_svg(figure: Figure, name: str, *, standalone: bool = False) -> str:
    """The figure as SVG text, the same bytes for the same figure.

    Args:
        figure: from one of the ``*_figure`` functions.
        name: prefix of all ids inside, so that one page can hold several figures.
        standalone: for a separate file, with an opaque background and its own dark colours. Otherwise the text is for
            HTML whose style sheet contains :func:`dark_css`, and has the background of the page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=not standalone)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("'DejaVu Sans'", FONTS)
    title = escape(" · ".join(axes.get_title("left") for axes in figure.axes if axes.get_title("left")))
    text = re.sub(r"(<svg [^>]*>)", lambda found: f"{found[0]}<title>{title}</title>", text, count=1)
    if standalone:
        return text.replace("<defs>", f"<style>{dark_css('')}</style>\n<defs>", 1)
    return re.sub(r'(<svg [^>]*?)(?: (?:width|height)="[^"]*"){1,2}', r'\1 class="figure" role="img"', text, count=1)


def dark_css(scope: str) -> str:
    """Style rules that replace each colour of the figures by its dark counterpart, on screens that prefer dark.

    The figures keep plain colours in their markup, so a viewer without style sheets shows the light version.
    """
    rules = [
        f'{scope} [style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    ]
    return "@media screen and (prefers-color-scheme: dark){" + "".join(rules) + "}"
