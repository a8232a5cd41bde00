"""Corrupt or malicious files: truncated, flipped, of other types, endless, nested, in other encodings."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

WORDS = ["", "a", "../../x", "/dev/zero", "NaN", "\ud800", "\x00", "python:os:system", "__import__('os')", "é" * 300]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, -(2**63), 1e308, float("nan"), float("inf")]),
    st.sampled_from(WORDS),
)
TREES = st.recursive(
    LEAVES, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.sampled_from(WORDS), each), max_leaves=6
)
NASTY = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe\x00",
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"1" * 100_000,
    b"\x00" * 64,
]


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All paths in a JSON tree."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for name, each in inside for place in places(each, (*path, name)))]


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The tree with another value at a path."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = put(tree[path[0]], path[1:], value)
    return copy


@st.composite
def changed_json(draw: st.DrawFn, tree: Any) -> Any:
    """A tree with something removed or inserted."""
    path = draw(st.sampled_from(places(tree)))
    if path and draw(st.booleans()):
        parent = tree
        for name in path[:-1]:
            parent = parent[name]
        less = {k: v for k, v in parent.items() if k != path[-1]} if isinstance(parent, dict) else parent[:-1]
        return put(tree, path[:-1], less)
    return put(tree, path, draw(TREES))


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that are truncated, flipped, duplicated or replaced."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "nasty"]))
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    if kind == "nasty":
        return draw(st.sampled_from(NASTY))
    if kind == "cut":
        return content[:at]
    if kind == "insert":
        return content[:at] + draw(st.binary(max_size=9)) + content[at:]
    return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :] if content else b"x"


@st.composite
def changed(draw: st.DrawFn, content: bytes) -> bytes:
    """Changes of both kinds, if the content is JSON."""
    try:
        tree = json.loads(content)
    except ValueError:
        return draw(changed_bytes(content))
    if draw(st.booleans()):
        return draw(changed_bytes(content))
    return json.dumps(draw(changed_json(tree))).encode()
