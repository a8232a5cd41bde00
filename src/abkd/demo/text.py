"""The demo's text: questions about Python's own library, answered by its docstrings.

Everything is read from the running interpreter, so nothing is downloaded and the rows are the same on every machine with
the same Python. ``build_rows`` gives conversational ``prompt``/``completion`` rows, split so that nothing leaks.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Modules that are quiet to import, on every platform, and whose docstrings are written as prose.
MODULES = """
builtins argparse array ast asyncio base64 bisect bz2 calendar cmath codecs collections colorsys compileall
concurrent.futures configparser contextlib contextvars copy csv dataclasses datetime decimal difflib dis email.message
email.utils enum filecmp fileinput fnmatch fractions ftplib functools gc getpass gettext glob graphlib gzip hashlib heapq
hmac html html.parser http.client http.cookies http.server imaplib importlib importlib.metadata importlib.resources
importlib.util inspect io ipaddress itertools json keyword linecache locale logging lzma math mimetypes mmap
multiprocessing multiprocessing.pool multiprocessing.shared_memory numbers operator os os.path pathlib pickle pkgutil
platform plistlib pprint pstats queue quopri random re reprlib runpy sched secrets select selectors shelve shlex shutil
signal site smtplib socket socketserver sqlite3 ssl stat statistics string struct subprocess sys sysconfig tarfile
tempfile textwrap threading time timeit tokenize traceback tracemalloc types typing unicodedata unittest unittest.mock
urllib.error urllib.parse urllib.request urllib.robotparser uuid warnings wave weakref webbrowser xml.etree.ElementTree
xml.sax.saxutils zipapp zipfile zlib zoneinfo
""".split()
SKIPPED = ("Abstract", "Base", "bytearray", "bytes", "FancyURLopener", "UCD", "_")  # plumbing, and doubles of others

QUESTIONS = {
    "function": (
        "What does the Python function `{}` do?",
        "Explain in a sentence or two what `{}` does in Python.",
        "I am reading Python code that calls `{}`. What does that do?",
    ),
    "method": (
        "What does the Python method `{}` do?",
        "Explain in a sentence or two what the method `{}` does in Python.",
        "I am reading Python code that calls `{}`. What does that do?",
    ),
    "class": (
        "What is the Python class `{}` for?",
        "Explain in a sentence or two what the class `{}` is in Python.",
    ),
    "attribute": (
        "What does the Python attribute `{}` hold?",
        "Explain in a sentence or two what the attribute `{}` is in Python.",
    ),
}
WORDS = (8, 45)  # an answer's length: shorter ones say nothing, longer ones cost the demo minutes
SENTENCES = 3

_ROLE = re.compile(r":[a-z:]+:`~?([^`]+)`")
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)(?<=[.!?])[\"')]?\s+(?=[A-Z\"'`(*])")
_SIGNATURE_LINE = re.compile(r"^[\w.]+\(.*?\)(\s*(->|=>|=)\s*\S.*)?$")
_UNFIT = re.compile(  # code, markup, abbreviations at the end, asides to maintainers, and references to what is not shown
    r">>>|->|=>|::|\||:param|@param|https?:|[^\x20-\x7e]|\b(e\.g|i\.e|etc)\.$|\.\.|(note|warning|todo|xxx|fixme):|"
    r"\b(deprecated|obsolete|internal|private|undocumented|backwards?|xxx|todo|fixme|above|below|as follows|following|"
    r"this (document|section|is here)|(don't|not) call|(sub)?class(es)? (should|must)|overrid(e|den)|documentation|"
    r"docstring|docs|see (also|the|help|pep|rfc|section)|pep ?\d|rfc ?\d|default implementation)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented thing: ``name`` as a user writes it, ``kind`` a key of ``QUESTIONS``, the call, and the answer."""

    name: str
    kind: str
    call: str
    answer: str

    @property
    def last_name(self) -> str:
        """The part after the last dot, in lower case: ``copytree``."""
        return self.name.rpartition(".")[2].lower()


def build_rows(held_out_share: float = 0.12) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The demo's rows, ``(train, held_out)``, each a conversational ``{"prompt": [...], "completion": [...]}``.

    No answer, no name (``open``, of whatever module) and no nearly equal answer is in both. The order is mixed, so that the
    first rows of either list are a fair sample of it. ``held_out_share`` is the share of the groups, and so about that of
    the rows.
    """
    entries = sorted(collect_entries(), key=lambda entry: _number(entry.name))
    train: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for entry, group in zip(entries, leak_groups(entries), strict=True):
        (held_out if _number(group) < held_out_share else train).append(_row(entry))
    return train, held_out


def collect_entries() -> list[Entry]:
    """Every fit entry of ``MODULES``, functions first; of nearly equal answers the first alone."""
    entries: list[Entry] = []
    words: list[frozenset[str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own deprecated names
        for name, kind, thing in _documented():
            answer = fit_answer(thing.__doc__)
            if answer is None:
                continue
            found = _words(answer)
            if not any(_alike(found, other) for other in words):
                entries.append(Entry(name, kind, _call(name, kind, thing), answer))
                words.append(found)
    return entries


def leak_groups(entries: list[Entry]) -> list[str]:
    """One label per entry: what must stay together, which is whatever shares its last name (``open``, of any module).

    Equal and nearly equal answers need no group: :func:`collect_entries` keeps one of them.
    """
    return [entry.last_name for entry in entries]


def fit_answer(doc: str | None) -> str | None:
    """The first sentences of a docstring as one plain line, or None when they do not make an answer by themselves."""
    sentences: list[str] = []
    for paragraph in _prose(inspect.cleandoc(doc or "")):
        for sentence in _SENTENCE_END.split(_plain(paragraph)):
            words = len(" ".join([*sentences, sentence]).split())
            if not _stands_alone(sentence) or words > WORDS[1] or len(sentences) == SENTENCES:
                return _long_enough(sentences)
            sentences.append(sentence)
    return _long_enough(sentences)


def _long_enough(sentences: list[str]) -> str | None:
    answer = " ".join(sentences)
    return answer if len(answer.split()) >= WORDS[0] else None


def _prose(doc: str) -> Iterator[str]:
    """The leading paragraphs that are flowing text; lines that repeat the signature are skipped."""
    for paragraph in re.split(r"\n\s*\n", doc):
        lines = [line for line in paragraph.splitlines() if line.strip() and not _SIGNATURE_LINE.match(line)]
        if not lines:
            continue
        if any(line[0].isspace() or line.startswith(("-", "*  ", "* ", "+ ", "#", "=", ".. ")) for line in lines):
            return
        yield "\n".join(lines)


def _plain(paragraph: str) -> str:
    text = _ROLE.sub(r"`\1`", paragraph).replace("``", "`").replace("-\n", "-")
    return " ".join(text.split())


def _stands_alone(sentence: str) -> bool:
    balanced = all(sentence.count(a) == sentence.count(b) for a, b in ("()", "[]", "{}"))
    quoted = sentence.count('"') % 2 == 0 and sentence.count("`") % 2 == 0
    return bool(
        sentence[:1].isupper() and sentence.endswith(".") and balanced and quoted and not _UNFIT.search(sentence)
    )


def _documented() -> Iterator[tuple[str, str, Any]]:
    """Public ``(name, kind, object)`` of ``MODULES``; a thing is told where it lives, not where it is imported."""
    classes: list[tuple[str, type]] = []
    for module_name in MODULES:
        prefix = "" if module_name == "builtins" else f"{module_name}."
        for name, thing in _public(module_name):
            if inspect.isclass(thing):
                classes.append((f"{prefix}{name}", thing))
            elif inspect.isroutine(thing):
                yield f"{prefix}{name}", "function", thing
    for name, owner in classes:
        yield name, _class_kind(name), owner
        yield from _members(name, owner)


def _public(module_name: str) -> Iterator[tuple[str, Any]]:
    try:
        module = importlib.import_module(module_name)
    except ImportError:  # a Python built without, say, sqlite
        return
    for name in sorted(getattr(module, "__all__", None) or vars(module)):
        thing = getattr(module, name, None)
        home = getattr(thing, "__module__", None) or module_name
        lives_here = home == module_name or home not in MODULES
        if lives_here and getattr(thing, "__name__", name) == name and not name.startswith(SKIPPED):
            yield name, thing


def _members(prefix: str, owner: type) -> Iterator[tuple[str, str, Any]]:
    for name, value in sorted(vars(owner).items()):
        if name.startswith("_"):
            continue
        thing = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if isinstance(thing, property):
            yield f"{prefix}.{name}", "attribute", thing
        elif inspect.isroutine(thing) and getattr(thing, "__name__", name) == name:
            yield f"{prefix}.{name}", "method", thing


def _class_kind(name: str) -> str:
    """Types in lower case (``zip``, ``itertools.chain``) are called and spoken of like functions."""
    return "function" if name.rpartition(".")[2].islower() else "class"


def _call(name: str, kind: str, thing: Any) -> str:
    """``name`` with its parameters: without annotations, receiver and long defaults, at most five of them."""
    if kind in ("class", "attribute"):
        return name
    try:
        parameters = list(inspect.signature(thing).parameters.values())
    except (TypeError, ValueError, NameError):
        return name
    if kind == "method" and parameters and parameters[0].name in ("self", "cls", "type", "meta"):
        parameters = parameters[1:]
    shown = [_parameter(p) for p in parameters if not p.name.startswith("_")]
    return f"{name}({', '.join(shown[:5] + ['...'] * (len(shown) > 5))})"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = parameter.default
    if type(default) in (bool, int, str, type(None)) and len(repr(default)) <= 10:
        return f"{parameter.name}={default!r}"
    return stars + parameter.name


def _row(entry: Entry) -> dict[str, Any]:
    questions = QUESTIONS[entry.kind]
    question = questions[int(_number(f"question of {entry.name}") * len(questions))].format(entry.call)
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": entry.answer}],
    }


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", text.lower()))


def _alike(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether two answers share more than 70 % of all their words."""
    return len(a & b) > 0.7 * len(a | b)


def _number(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
