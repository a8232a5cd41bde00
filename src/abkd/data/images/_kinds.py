"""Files that may be mistaken for images, and what they are instead."""

from __future__ import annotations

PLUGINS = {".avif": "-U pillow", ".heic": "pillow-heif", ".heif": "pillow-heif"}
"""Package to install for each suffix that cannot be read without it."""

_BRANDS = {b"avif": ".avif", b"avis": ".avif", **dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1", b"msf1"), ".heic")}
_BEGINNINGS = {
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"8BPS": "a Photoshop file",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"<svg": "an SVG drawing: render it first",
    b"<?xml": "an XML file, such as an SVG drawing: render it first",
    b"<!DOC": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a git-lfs pointer: run git lfs pull",
}


def kind_of(content: bytes) -> str | None:
    """The kind of a file that is not an image, with the way out; None if its first bytes are unknown."""
    if content[4:8] == b"ftyp" and (suffix := _BRANDS.get(content[8:12])):
        return f"an image in the format {suffix[1:].upper()}: pip install {PLUGINS[suffix]}"
    return next((kind for beginning, kind in _BEGINNINGS.items() if content.startswith(beginning)), None)
