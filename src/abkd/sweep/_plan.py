"""The runs of a sweep: each is checked as a separate recipe before the first one starts."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import yaml

from abkd.errors import ConfigError, shown
from abkd.recipe import Recipe, written

Settings = Mapping[str, Mapping[str, object]]
"""The fields that each setting changes, by the name of the setting."""

_SEED_LIMIT = 2**32  # numpy's
_LONGEST_NAME = 120  # of a directory; file systems take 255 bytes
_OURS = {
    "seed": "use --seeds 1,2,3",
    "output_dir": "each run gets its own directory in output_dir",
    "overwrite_output_dir": "it applies to the whole sweep",
    "resume_from_checkpoint": "--resume resumes every run",
}


class Place(NamedTuple):
    """The folder of a setting's runs in the sweep's directory, and the fields that the setting changes, as JSON."""

    directory: str
    changes: dict[str, object]


@dataclass(frozen=True)
class Run:
    """One run: its setting (empty if there is only one), its seed, and its own recipe.

    ``place``: the folder of its setting's runs in the directory of the sweep.
    """

    setting: str
    recipe: Recipe
    place: Place

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.recipe.config["seed"]

    @property
    def directory(self) -> Path:
        """The output directory of the run."""
        return Path(self.recipe.output_dir)


def read_seeds(text: str) -> tuple[int, ...]:
    """Parse ``"1,2,3"``.

    Raises:
        ConfigError: not integers separated by commas.
    """
    words = [word.strip() for word in text.strip().removeprefix("[").removesuffix("]").split(",")]
    if not all(re.fullmatch(r"[0-9]+", word) for word in words):
        raise ConfigError(f"--seeds expects integers separated by commas (1,2,3), got {shown(text)}")
    return tuple(map(int, words))


def settings_of(recipe: Recipe, grid: Mapping[str, Sequence[object]]) -> dict[str, dict[str, object]]:
    """Every combination of the values in a grid, by its name, ``"kd_weight=100, divergence=ForwardKL()"``.

    Raises:
        ConfigError: a field without values, an unknown field, an invalid value, a duplicate setting.
    """
    for name, values in grid.items():
        if name in _OURS:
            raise ConfigError(f"grid: {name} cannot be varied; {_OURS[name]}")
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f"grid: {name} needs a list of values, as {{{name}: [...]}}, got {values!r}")
    found: dict[str, dict[str, object]] = {}
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        set_now = _values(changed(recipe, values))
        name = ", ".join(f"{key}={written(set_now.get(key, values[key]))}" for key in grid)
        if name in found:
            raise ConfigError(f"grid: the setting {name} appears twice; keep one")
        found[name] = values
    return found


def plan(
    recipe: Recipe, settings: Settings, seeds: Sequence[int] | None = None, known: Sequence[Place] = ()
) -> list[Run]:
    """The runs in order: every setting with the first seed, then with the next.

    Args:
        known: folders of settings that already have runs; a setting keeps its folder, whatever the other settings are.

    Raises:
        ConfigError: invalid seeds or settings.
    """
    if "resume_from_checkpoint" in recipe.config:
        raise ConfigError("resume_from_checkpoint applies to a single run; to resume several, use --resume")
    chosen = _checked_seeds([recipe.distill_config().seed] if seeds is None else seeds)
    variants = [changed(recipe, values) for values in settings.values()]
    for variant in variants:
        variant.distill_config()
        variant.check_ready(output=False)
    changes = [_changes(variant, values) for variant, values in zip(variants, settings.values(), strict=True)]
    places = _places(list(settings), changes, known)
    return [
        Run(name, changed(recipe, {**values, "seed": seed, "output_dir": _output(recipe, place, seed)}), place)
        for seed in chosen
        for (name, values), place in zip(settings.items(), places, strict=True)
    ]


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    strange = [
        seed for seed in seeds if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEED_LIMIT
    ]
    if strange or not seeds:
        raise ConfigError(f"seeds must be integers from 0 to {_SEED_LIMIT - 1}, got {[*strange] or 'none'}")
    twice = [seed for seed, times in Counter(seeds).items() if times > 1]
    if twice:
        raise ConfigError(f"seeds: {twice[0]} appears twice and would give the same run; keep one")
    return list(seeds)


def changed(recipe: Recipe, values: Mapping[str, object]) -> Recipe:
    """The recipe with these values, for a separate run.

    Raises:
        ConfigError: invalid values.
    """
    named = ", ".join(f"{key}={written(value)}" for key, value in values.items() if key not in _OURS)
    now = {name: value for name, value in _values(recipe).items() if name != "overwrite_output_dir"}
    return Recipe.from_dict({**now, **values}, where=f"recipe with {named}" if named else "recipe")


def _values(recipe: Recipe) -> dict[str, object]:
    return yaml.safe_load(recipe.to_yaml())


def _output(recipe: Recipe, place: Place, seed: int) -> str:
    return str(Path(recipe.output_dir) / place.directory / f"seed-{seed}")


def _changes(variant: Recipe, values: Mapping[str, object]) -> dict[str, object]:
    """The fields that a setting changes, in the canonical form of a recipe."""
    set_now = _values(variant)
    return json.loads(json.dumps({name: set_now.get(name, value) for name, value in values.items()}, default=str))


def _places(names: Sequence[str], changes: Sequence[dict[str, object]], known: Sequence[Place]) -> list[Place]:
    """The folder of each setting: the one that it had before, else one that no other setting has."""
    left, taken = list(known), {place.directory for place in known}
    found: list[Place] = []
    for name, short, change in zip(names, _directories(names), changes, strict=True):
        before = next((place for place in left if place.changes == change), None)
        if before is not None:
            left.remove(before)
        found.append(before or Place(_numbered(name, short) if short in taken else short, change))
    return found


def _directories(names: Sequence[str]) -> list[str]:
    """A directory name for each setting: its own name, where possible; empty if there is only one setting."""
    if list(names) == [""]:
        return [""]
    plain = [re.sub(r"[^\w.+=-]+", "_", name).strip("_.") for name in names]
    return [
        short if 0 < len(short) <= _LONGEST_NAME and plain.count(short) == 1 else _numbered(name, short)
        for name, short in zip(names, plain, strict=True)
    ]


def _numbered(name: str, short: str) -> str:
    return f"{short[:_LONGEST_NAME]}-{blake2b(name.encode(), digest_size=4).hexdigest()}"
