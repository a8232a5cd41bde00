"""Checks of a model's name that neither build the model nor read its weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from abkd import imports
from abkd.errors import ConfigError

_ELSEWHERE = ("hf-hub", "hf_hub", "local-dir")  # prefixes of timm names that can be checked only by loading


def check_code(name: str, field: str, allowed: Sequence[str]) -> None:
    """Raise ConfigError if the module in a name is missing, or that of a model directory is not in ``allowed``."""
    code = imports.CodeName.read(name)
    if code is not None:
        imports.locate(code.module)
    elif Path(name, "abkd.json").is_file():
        from abkd.models.vision import check_code

        check_code(name, field, allowed)


def check_name(name: str, field: str, allowed: Sequence[str]) -> None:
    """As :func:`check_code` for an image classifier; also check that the collection has a network of this name."""
    zoo, _, entry = name.partition(":")
    if not entry:
        return check_code(name, field, allowed)
    from abkd.models import cifar
    from abkd.models.vision import ZOOS

    if zoo not in ZOOS:
        raise ConfigError(f"{field} must begin with one of {', '.join(f'{each}:' for each in ZOOS)}, got {name!r}")
    if zoo == "cifar":
        cifar.find(entry)
    elif zoo == "python":
        if imports.CodeName.read(name) is None:
            raise ConfigError(f"{field} must be python:package.module:function, got {name}, which names no function")
        check_code(name, field, allowed)
    elif not _is_there(zoo, entry):
        raise ConfigError(f"{field}: {zoo} has no classifier {entry!r}: check the name")
    return None


def _is_there(zoo: str, entry: str) -> bool:
    """Whether timm or torchvision has the name; True if they are not installed, which is reported elsewhere."""
    try:
        found: Any = importlib.import_module({"timm": "timm", "torchvision": "torchvision.models"}[zoo])
    except (ImportError, RuntimeError):  # RuntimeError: torchvision was built for another torch
        return True
    if zoo == "timm":
        return entry.partition(":")[0] in _ELSEWHERE or found.is_model(entry)
    return entry.lower() in found.list_models(module=found)


def unknown_model(
    check: Callable[[str, str, Sequence[str]], object], name: str, field: str, allow_code: Sequence[str]
) -> str | None:
    """The message of the ConfigError that ``check`` raises for a model's name; None if it raises none."""
    try:
        check(name, field, allow_code)
    except ConfigError as error:
        return str(error)
    return None
