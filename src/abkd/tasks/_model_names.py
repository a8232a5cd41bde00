"""Whether a model can be had by its name, as far as that is known without building it or reading its weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from abkd import imports
from abkd.errors import ConfigError

_ELSEWHERE = ("hf-hub", "hf_hub", "local-dir")  # of timm's names: what lies there is known when it is fetched


def check_code(name: str, field: str, allowed: Sequence[str]) -> None:
    """Raise ConfigError where the module that a name names is not there, or that a directory names without leave."""
    zoo, _, entry = name.partition(":")
    if zoo == "python" and ":" in entry:
        imports.locate(entry.rpartition(":")[0])
    elif Path(name, "abkd.json").is_file():
        from abkd.models.vision import check_code

        check_code(name, field, allowed)


def check_name(name: str, field: str, allowed: Sequence[str]) -> None:
    """The same of an image classifier, of which collections know the names of their networks."""
    zoo, _, entry = name.partition(":")
    if not entry:
        return check_code(name, field, allowed)
    from abkd.models import cifar
    from abkd.models.vision import ZOOS

    if zoo not in ZOOS:
        raise ConfigError(f"{field}: {name!r} begins with none of {', '.join(f'{each}:' for each in ZOOS)}")
    if zoo == "cifar":
        cifar.find(entry)
    elif zoo == "python":
        if ":" not in entry:
            raise ConfigError(f"{field}: {name} names no function: write python:package.module:function")
        check_code(name, field, allowed)
    elif not _is_there(zoo, entry):
        raise ConfigError(f"{field}: {zoo} has no classifier called {entry!r}: check the name")
    return None


def _is_there(zoo: str, entry: str) -> bool:
    """Whether timm or torchvision knows the name; where they are not installed, that is what is wrong."""
    try:
        found: Any = importlib.import_module({"timm": "timm", "torchvision": "torchvision.models"}[zoo])
    except (ImportError, RuntimeError):  # torchvision that was built for another torch says the latter
        return True
    if zoo == "timm":
        return entry.partition(":")[0] in _ELSEWHERE or found.is_model(entry)
    return entry.lower() in found.list_models(module=found)


def unknown_model(
    check: Callable[[str, str, Sequence[str]], object], name: str, field: str, allow_code: Sequence[str]
) -> str | None:
    """What ``check`` raises about a model's name, as a sentence; None where it is fine."""
    try:
        check(name, field, allow_code)
    except ConfigError as error:
        return str(error)
    return None
