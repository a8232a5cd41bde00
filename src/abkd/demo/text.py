"""The demo's text: questions about Python's own library, answered from its docstrings.

Everything is read from the running interpreter, so nothing is downloaded, and the rows are the same for the same Python
on the same system. ``build_rows`` returns conversational rows, split without leakage.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from abkd.demo.english import alike, fit_sentences, tell, words

# Modules that can be imported on every platform without side effects, and whose docstrings are prose.
MODULES = tuple(
    """
    builtins argparse array ast asyncio base64 bisect bz2 calendar cmath codecs collections colorsys compileall
    concurrent.futures configparser contextlib contextvars copy csv dataclasses datetime decimal difflib dis
    email.message email.utils enum filecmp fileinput fnmatch fractions ftplib functools gc getpass gettext glob
    graphlib gzip hashlib heapq hmac html html.parser http.client http.cookies http.server imaplib importlib
    importlib.metadata importlib.resources importlib.util inspect io ipaddress itertools json keyword linecache
    locale logging lzma math mimetypes mmap multiprocessing multiprocessing.pool multiprocessing.shared_memory
    numbers operator os os.path pathlib pickle pkgutil platform plistlib pprint pstats queue quopri random re
    reprlib runpy sched secrets select selectors shelve shlex shutil signal site smtplib socket socketserver sqlite3
    ssl stat statistics string struct subprocess sys sysconfig tarfile tempfile textwrap threading time timeit
    tokenize traceback tracemalloc types typing unicodedata unittest unittest.mock urllib.error urllib.parse
    urllib.request urllib.robotparser uuid warnings wave weakref webbrowser xml.etree.ElementTree xml.sax.saxutils
    zipapp zipfile zlib zoneinfo
    """.split()
)
SKIPPED = ("Abstract", "Base", "bytearray", "bytes", "FancyURLopener", "UCD", "_")  # internals, duplicates of others
PRIVATE_HOMES = ("_", "posix", "nt", "genericpath")  # modules behind the public ones
CALLABLE = ("function", "method")
HELD_OUT_SHARE = 0.12  # of the names, so roughly of the rows
QUESTIONS = (
    "In one short sentence, what does the Python {kind} `{call}` do?",
    "Explain in a sentence or two what the {kind} `{call}` does in Python.",
    "Describe the Python {kind} `{call}` in a sentence or two.",
)
QUESTIONS_ABOUT_THINGS = (
    "In one short sentence, what is the Python {kind} `{call}`?",
    "Describe the Python {kind} `{call}` in a sentence or two.",
)

Turns = list[dict[str, str]]
Row = dict[str, Turns]


@dataclass(frozen=True, slots=True)
class Entry:
    """A documented object: its dotted ``name``, its ``kind``, the ``call`` shown in questions, and the answer."""

    name: str
    kind: str
    call: str
    answer: str

    @property
    def last_name(self) -> str:
        """The part after the last dot, in lower case: ``copytree``."""
        return self.name.rpartition(".")[2].lower()


def build_rows() -> tuple[list[Row], list[Row]]:
    """The demo's rows, ``(train, held_out)``, each a conversational ``{"prompt": [...], "completion": [...]}``.

    No answer, no nearly equal answer and no name (such as ``open``, in any module) is in both. The order is mixed, so
    the first rows of a list are a fair sample of it.
    """
    train: list[Row] = []
    held_out: list[Row] = []
    for entry in sorted(collect_entries(), key=lambda entry: _number(entry.name)):
        (held_out if _number(entry.last_name) < HELD_OUT_SHARE else train).append(_row(entry))
    return train, held_out


def collect_entries() -> list[Entry]:
    """All usable entries of ``MODULES``, functions first; of nearly equal answers only the first is kept."""
    entries: list[Entry] = []
    seen: list[frozenset[str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the standard library's own deprecations
        for name, kind, thing in _documented():
            answer = tell(name, kind, fit_sentences(thing.__doc__))
            used = words(answer.partition(f"{kind} ")[2]) if answer else frozenset()
            if answer is None or any(alike(used, other) for other in seen):
                continue
            entries.append(Entry(name, kind, _call(name, kind, thing), answer))
            seen.append(used)
    return entries


def _documented() -> Iterator[tuple[str, str, object]]:
    """Public ``(name, kind, object)`` of ``MODULES``, each in the module that defines it, not where it is imported."""
    classes: list[tuple[str, type]] = []
    for module_name in MODULES:
        prefix = "" if module_name == "builtins" else f"{module_name}."
        for name, thing in _public(module_name):
            if inspect.isclass(thing):
                classes.append((f"{prefix}{name}", thing))
            elif inspect.isroutine(thing):
                yield f"{prefix}{name}", "function", thing
    for name, owner in classes:
        yield name, _class_kind(owner), owner
        yield from _members(name, owner)


def _public(module_name: str) -> Iterator[tuple[str, object]]:
    try:
        module = importlib.import_module(module_name)
    except ImportError:  # a Python built without, say, sqlite
        return
    for name in sorted(getattr(module, "__all__", None) or vars(module)):
        thing = getattr(module, name, None)
        home = getattr(thing, "__module__", None) or module_name
        lives_here = home == module_name or home.startswith((f"{module_name}.", *PRIVATE_HOMES))
        if lives_here and getattr(thing, "__name__", name) == name and not name.startswith(SKIPPED):
            yield name, thing


def _members(prefix: str, owner: type) -> Iterator[tuple[str, str, object]]:
    for name, value in sorted(vars(owner).items()):
        if name.startswith("_"):
            continue
        thing = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if isinstance(thing, property):
            yield f"{prefix}.{name}", "attribute", thing
        elif inspect.isroutine(thing) and getattr(thing, "__name__", name) == name:
            yield f"{prefix}.{name}", "method", thing


def _class_kind(owner: type) -> str:
    """The kind of a class; types in lower case (``zip``, ``itertools.chain``) count as functions."""
    if issubclass(owner, BaseException):
        return "exception"
    return "function" if owner.__name__.islower() else "class"


def _call(name: str, kind: str, thing: object) -> str:
    """``name`` with its parameters: without annotations, receiver and long defaults, at most five of them."""
    if kind not in CALLABLE or not callable(thing):
        return name
    try:
        parameters = list(inspect.signature(thing).parameters.values())
    except (TypeError, ValueError, NameError):  # no signature, or an annotation uses a name that is not imported
        return f"{name}()" if kind == "method" else name
    if kind == "method" and parameters and parameters[0].name in ("self", "cls", "type", "meta"):
        parameters = parameters[1:]
    shown = [_parameter(p) for p in parameters if not p.name.startswith("_")]
    return f"{name}({', '.join(shown[:5] + ['...'] * (len(shown) > 5))})"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = parameter.default
    if type(default) in (bool, int, type(None)) and len(repr(default)) <= 10:  # a string may name a path or a venv
        return f"{parameter.name}={default!r}"
    return stars + parameter.name


def _row(entry: Entry) -> Row:
    forms = QUESTIONS if entry.kind in CALLABLE else QUESTIONS_ABOUT_THINGS
    form = forms[int(_number(f"question of {entry.name}") * len(forms))]
    # Without an empty system turn, the chat template adds its own, twenty tokens in every row.
    prompt = [
        {"role": "system", "content": ""},
        {"role": "user", "content": form.format(kind=entry.kind, call=entry.call)},
    ]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": entry.answer}]}


def _number(text: str) -> float:
    """A number in [0, 1) that depends only on the text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
