"""Turning a docstring into an answer: choosing sentences that stand alone, and making a name their subject."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

WORDS = (7, 40)  # an answer's length: shorter ones are uninformative, longer ones cost the demo minutes
SENTENCES = 2

# Docstrings use the imperative ("Return ..."), answers the third person ("The `len` function returns ..."). Words that
# open a docstring as nouns just as often ("list", "hash", "time") are left out.
VERBS = frozenset(
    """
    accept acquire add adjust allow append apply arrange assert associate attach attempt block build calculate call
    cancel cast change check choose clean clear close collapse collect combine commit compare compile compress
    compute concatenate connect construct convert copy create decode decompress decrement define delegate delete
    deserialize detect determine disable disassemble discard divide drop duplicate emit enable encode ensure enter
    escape estimate evaluate examine execute expand extend extract fail feed fetch fill find finish flush force fork
    free freeze generate get guess handle implement increment indent indicate initialize initiate insert invoke
    isolate iterate join keep kill load locate look make mark match merge modify move normalize obtain open pack pad
    parse pass pause perform place pop prepare print provide push put query quote raise read register release reload
    remove rename repeat replace report represent request reset resolve restore resume retrieve return reverse
    rotate run save scan schedule search seed send serialize set show shuffle skip sort split start stop store strip
    submit suspend swap take tell terminate tokenize transfer transform translate truncate try turn unpack
    unregister update use validate verify wait wake walk warn wrap write yield
    """.split()
)
OPENERS = frozenset(  # allowed at the start of a second sentence; anything else may be a fragment: "Useful for ..."
    "The If This It When For In Each All On By With They Any Both These Otherwise Otherwise, There You No At "
    "Optionally, Values Entries Data As After Before A An".split()
)
CONTINUERS = ("Return", "Returns", "Raise", "Raises", "Yield", "Yields")  # subject: the function; else the reader

_ROLE = re.compile(r":[a-z:]+:`~?([^`]+)`")
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)(?<=[.!?])[\"')]?\s+(?=[A-Z\"'`(*])")
_SIGNATURE_LINE = re.compile(r"^[\w.]+\(.*?\)(\s*(->|=>|=)\s*\S.*)?$")
_UNFIT = re.compile(  # code, markup, abbreviations at the end, notes to maintainers, references to other text
    r">>>|->|=>|::|\||:param|@param|https?:|[^\x20-\x7e]|\b(e\.g|i\.e|etc)\.$|\.\.|b' '|(note|warning|todo|xxx|fixme):|"
    r"\b(deprecated|obsolete|internal|private|undocumented|backwards?|xxx|todo|fixme|above|below|as follows|following|"
    r"this (document|section|is here|version)|(don't|not) call|(sub)?class(es)? (should|must)|overrid(e|den)|docs|"
    r"documentation|docstring|see (also|the|help|pep|rfc|section)|pep ?\d|rfc ?\d|default implementation|cpython)\b",
    re.IGNORECASE,
)
_COMMAND = re.compile(r"([A-Z]\w+ly )?([A-Za-z]+)(?= )")  # "Return ...", "Recursively copy ..."
_AND_VERB = re.compile(
    rf"(\b(?:and|or|then|but) |[,;] |\()((?:then |optionally |also |else )?)({'|'.join(sorted(VERBS))})\b"
)
_STRAY_VERB = re.compile(  # a clause without a subject: "if pid is 0, returns ..."
    rf"[,;] (?:then |also |else |otherwise )?(?:{'|'.join(sorted(VERBS))})s?\b|^If [^,]*\breturn\b"
)
_NO_AGREEMENT = re.compile(r"\b(to|that|which|who|can|will|must|should|may|not|if|when|for|it|by|you|of)\b|[(,;]")
_BEFORE_THAT = r"((?!\b(that|which|whose)\b).)*"
_PHRASES = (  # how a docstring opens, and how the sentence continues after "The `X` class"
    (re.compile(r"(Raised|Called|Used) "), "is {}"),
    (re.compile(r"(Base class|Interface|Exception) "), "is the {}"),
    (re.compile(r"(Metaclass|Subclass|Factory|Decorator|Hook) (?!\w+ (is|are))"), "is a {}"),
    (
        re.compile(
            rf"(A|An|The) (?!{_BEFORE_THAT}\b(is|are|has|have|required|[a-z]+s (the|an?|all|almost|most|multiple))\b)"
        ),
        "is {}",
    ),
)


def alike(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether two word sets share more than 70 % of their words."""
    if min(len(a), len(b)) <= 0.7 * max(len(a), len(b)):
        return False
    return len(a & b) > 0.7 * len(a | b)


def words(text: str) -> frozenset[str]:
    """The set of words in a string, without case and punctuation."""
    return frozenset(re.findall(r"[a-z0-9]+", text.lower()))


def fit_sentences(doc: str | None) -> list[str]:
    """The first sentences of a docstring that can stand alone, as plain lines; empty if they have too few words."""
    sentences: list[str] = []
    for sentence in _sentences(inspect.cleandoc(doc or "")):
        length = len(" ".join([*sentences, sentence]).split())
        if not _stands_alone(sentence) or length > WORDS[1] or len(sentences) == SENTENCES:
            break
        sentences.append(sentence)
    return sentences if len(" ".join(sentences).split()) >= WORDS[0] else []


def tell(name: str, kind: str, sentences: list[str]) -> str | None:
    """The sentences as an answer with ``name`` as its subject; None if the result would not be plain English."""
    if not sentences:
        return None
    first = _predicate(kind, sentences[0])
    if first is None:
        return None
    parts = [f"The `{name}` {kind} {first}"]
    for sentence in sentences[1:]:
        opener = sentence.split()[0]
        predicate = _finite(sentence) if opener in CONTINUERS else None
        if _STRAY_VERB.search(sentence) or (predicate is None and opener not in OPENERS):
            break
        parts.append(f"It {predicate}" if predicate else sentence)
    answer = " ".join(parts)
    return answer if len(answer.split()) >= WORDS[0] + 3 else None


def _predicate(kind: str, sentence: str) -> str | None:
    for opening, form in _PHRASES:
        if opening.match(sentence):
            return form.format(sentence[0].lower() + sentence[1:])
    return _finite(sentence) if kind in ("function", "method", "class") else None  # an attribute returns nothing


def _finite(sentence: str) -> str | None:
    """``Return x and close y.`` and ``Returns x.`` in the third person (``returns x and closes y.``), else None."""
    found = _COMMAND.match(sentence)
    if found is None:
        return None
    adverb, verb, rest = (found[1] or "").lower(), found[2].lower(), sentence[found.end() :]
    if verb in _THIRD_PERSON:
        return f"{adverb}{verb}{rest}"
    if verb not in VERBS:
        return None
    for other in _AND_VERB.finditer(rest):
        if other[1] not in ("and ", "or ", "then ", "but ") or _NO_AGREEMENT.search(rest[: other.start()]):
            return None  # "a way to read and write", "name, format": subject unclear, or perhaps not a verb
    agreed = _AND_VERB.sub(lambda other: other[1] + other[2] + _third_person(other[3]), rest)
    return f"{adverb}{_third_person(verb)}{agreed}"


def _third_person(verb: str) -> str:
    if verb.endswith(("s", "x", "z", "ch", "sh")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if re.search(r"[^aeiou]y$", verb) else f"{verb}s"


_THIRD_PERSON = frozenset(_third_person(verb) for verb in VERBS)


def _sentences(doc: str) -> Iterator[str]:
    """The sentences of the leading prose paragraphs; lines that repeat the signature are skipped."""
    for paragraph in re.split(r"\n\s*\n", doc):
        lines = [line for line in paragraph.splitlines() if line.strip() and not _SIGNATURE_LINE.match(line)]
        if any(line[0].isspace() or line.startswith(("-", "* ", "+ ", "#", "=", ".. ")) for line in lines):
            return
        text = _ROLE.sub(r"`\1`", "\n".join(lines)).replace("``", "`").replace("-\n", "-")
        if lines:
            yield from _SENTENCE_END.split(" ".join(text.split()))


def _stands_alone(sentence: str) -> bool:
    paired = all(sentence.count(a) == sentence.count(b) for a, b in ("()", "[]", "{}"))
    quoted = sentence.count('"') % 2 == 0 and sentence.count("`") % 2 == 0
    return sentence[:1].isupper() and sentence.endswith(".") and paired and quoted and not _UNFIT.search(sentence)
