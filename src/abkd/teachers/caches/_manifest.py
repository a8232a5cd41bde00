"""``manifest.json``: whose rows a folder holds, in which format, and how many."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abkd.errors import ConfigError
from abkd.storage import disk_errors, read_checksummed, write_checksummed
from abkd.teachers.caches._identity import fingerprint

FILE = "manifest.json"
_FORMAT = 1
_OF_IDENTITY = {"teacher": "teacher", "tokenizer": "tokenizer", "chat_template": "chat template"}
_OWN = {"format": "format", "kind": "kind", "temperature": "kd_temperature", "k": "k", "dtype": "dtype"}

_OF_IMAGES = " of images"
_DTYPES = ("float64", "float32", "bfloat16", "float16")

Values = Mapping[str, object]


def facts(kind: str, identity: Values | None, **own: object) -> dict[str, object]:
    """Facts that must match for stored rows to be usable, as far as they are known without loading a model.

    ``identity`` is the result of :func:`abkd.teachers.identity` or ``image_identity``, or None if unknown.
    """
    known = identity or {}
    if known.get("images"):
        kind += _OF_IMAGES
    return {"format": _FORMAT, "kind": kind, **{name: known.get(name) for name in _OF_IDENTITY}, **own}


def of_images(values: Values) -> bool:
    """Whether these facts describe a cache of images."""
    return str(values["kind"]).endswith(_OF_IMAGES)


def owner(values: Values) -> str:
    """A hash (16 hex digits) of the facts; the manifest contains them too."""
    return fingerprint({name: values[name] for name in (*_OF_IDENTITY, *_OWN) if name in values})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None if it is missing, changed, truncated or invalid."""
    values = read_checksummed(folder / FILE)
    return values if values is not None and _is_sound(values) else None


def _is_sound(values: Mapping[str, Any]) -> bool:
    """Whether all entries that are read later exist in their type: a checksum detects accidents, not intent."""
    kind, of_kind = values.get("kind"), {}
    if isinstance(kind, str) and kind.startswith("TopKCache"):
        of_kind = {"classes": int, "k": int, "temperature": float}
    types = {"kind": str, "computed_in": str, "head_rows": int, **of_kind}
    if any(type(values.get(name)) is not each for name, each in types.items()):
        return False
    return values["computed_in"] in _DTYPES and all(values[name] > 0 for name, each in types.items() if each is not str)


def write(folder: Path, values: Values) -> None:
    """Write the manifest. Raises StorageError if that fails."""
    with disk_errors(f"{folder / FILE}", "Free disk space and run abkd cache again"):
        write_checksummed(folder / FILE, values)


def check(folder: Path, manifest: Values, wanted: Values) -> None:
    """Raise ConfigError, with all differences, unless the cache matches these facts (as far as they are known)."""
    identity = {name: word for name, word in _OF_IDENTITY.items() if wanted[name] is not None}
    different = [
        f"different {word} (expected {wanted.get(name)}, got {manifest.get(name)})"
        for name, word in (identity | _OWN).items()
        if manifest.get(name) != wanted.get(name)
    ]
    if different:
        raise ConfigError(
            f"the cache {folder}, built from {manifest.get('name')}, cannot be used here: {', '.join(different)}. Set "
            "another path, or none, and build it with abkd cache"
        )
