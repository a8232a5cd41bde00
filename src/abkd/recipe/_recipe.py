"""``Recipe``: models + data + the fields of ``DistillConfig``."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from abkd import notation
from abkd.errors import ConfigError
from abkd.output_dir import DEFAULT
from abkd.outside import Unloaded
from abkd.recipe import _checks, _code, _fields, _output, _text
from abkd.recipe._files import belongs_to, read_with_files
from abkd.run_inputs import DataSettings, LoraSettings, ModelSettings
from abkd.settings import Settings, settings_of
from abkd.storage import in_full

if TYPE_CHECKING:
    from abkd.config import DistillConfig
    from abkd.objective import Objective

_PLAIN = (bool, int, float, str, list, tuple, dict)


@dataclass(frozen=True, kw_only=True)
class Recipe(LoraSettings, DataSettings, ModelSettings):
    """One run: models and data as fields, and ``config`` with the fields of ``DistillConfig`` that were set.

    Create one with :meth:`from_yaml` or :meth:`from_dict`, which check names, types and combinations and raise
    ``ConfigError`` before anything is loaded. Paths are relative to the working directory; ``None`` always means "not
    set".
    """

    output_dir: str = DEFAULT

    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, object],
        *,
        where: str = "recipe",
        flags: Collection[str] = frozenset(),
        load_code: bool = True,
    ) -> Recipe:
        """The recipe with these values, all on one level; ``where`` names it in errors.

        Args:
            flags: the names that were given on the command line, for which errors show the flag, not the file.
            load_code: if False, code of other packages is not imported, and components that name it stay
                :attr:`unloaded`: such a recipe can be looked at, but not run.

        Raises:
            ConfigError: lists all unknown names and wrong types, or else all invalid values and combinations.
        """
        types = {**_fields.config_fields(), **own_fields()}
        values = {name: value for name, value in values.items() if not _is_unset(types.get(name), value)}
        problems: list[str] = []
        known: dict[str, Any] = {}
        for name, value in values.items():
            try:
                known[name] = _value(name, types, value, flag=name in flags, load_code=load_code)
            except ConfigError as error:
                problems.append(f"{'' if name in flags else f'{where}: '}{error}")
        known = {name: _in_full(name, value) for name, value in known.items()}
        problems = problems or [f"{where}: {problem}" for problem in _checks.problems(known)]
        if problems:
            raise ConfigError(_listed(where, problems))
        own = {name: value for name, value in known.items() if name in own_fields()}
        return cls(**own, config={name: value for name, value in known.items() if name not in own})

    @classmethod
    def from_yaml(
        cls, path: str | Path, flags: Mapping[str, object] = MappingProxyType({}), *, load_code: bool = True
    ) -> Recipe:
        """The recipe in a file (or the shipped one of that name), ``flags`` taking precedence.

        A recipe in the folder of a run or a model imports only modules that ``allow_code`` names in ``flags``, or in a
        recipe of the user's own that extends it.

        Args:
            load_code: see :meth:`from_dict`.

        Raises:
            ConfigError: no such file, not YAML, code that is not allowed, or see :meth:`from_dict`.
        """
        values, files = read_with_files(path)
        files = {name: file for name, file in files.items() if name not in flags}
        if load_code:
            if "allow_code" in files and belongs_to(files["allow_code"]):
                del values["allow_code"], files["allow_code"]  # a record cannot allow what it names
            allowed = _value("allow_code", _fields.config_fields(), {**values, **flags}.get("allow_code") or [])
            _code.check_code(values, files, allowed)
        return cls.from_dict({**values, **flags}, where=str(path), flags=flags.keys(), load_code=load_code)

    def to_yaml(self, *, resolved: bool = False) -> str:
        """Flat YAML of the values that were set (:meth:`from_yaml` gives an equal recipe), or of :meth:`resolved`."""
        if resolved:
            return _text.write_mapping(self.resolved())
        defaults = {f.name: f.default for f in dataclasses.fields(self) if f.name in own_fields()}
        own = {name: getattr(self, name) for name in defaults}
        changed = {name: value for name, value in own.items() if value != defaults[name] or name == "output_dir"}
        return _text.write_mapping({name: _plain(name, value) for name, value in {**changed, **self.config}.items()})

    def resolved(self) -> dict[str, object]:
        """All settings of abkd with their values in this run, and the inherited ones that were set.

        The values are plain (components in their notation), so that ``Recipe.from_dict(r.resolved())`` is the same run.
        """
        values = {**{name: getattr(self, name) for name in own_fields()}, **_fields.config_defaults(), **self.config}
        values |= _checks.expand_short_forms(values)
        unused = {"ce_weight", "kd_weight"} if values.get("kd_ratio") is not None else {"kd_ratio"}
        unused |= set() if self.use_peft else _checks.LORA
        elsewhere = self.streaming or any(getattr(self, name) for name in _checks.HELD_OUT)
        unused |= {"eval_fraction"} if elsewhere else set()
        values["eval_fraction"] = self.eval_fraction if _checks.may_find_held_out(values) else self.share_held_out
        unused |= set() if self.dataset_name else _checks.DATASET
        unused |= _checks.unused_fields(values)
        return {
            name: _plain(name, value)
            for name, value in values.items()
            if value is not None and name not in unused and not name.endswith("_token")
        }

    @property
    def unloaded(self) -> dict[str, Unloaded]:
        """The components whose code was not imported, by the name of their setting."""
        return {name: value for name, value in self.config.items() if isinstance(value, Unloaded)}

    def distill_config(self) -> DistillConfig:
        """The training arguments of this recipe.

        Raises:
            ConfigError: something is missing on this machine (a package, or a GPU for tf32), or the recipe was read
                without the code that it names.
        """
        from abkd.config import DistillConfig

        for name, value in self.unloaded.items():
            raise ConfigError(f"{name}: {value} was read without its code; read the recipe with load_code=True")
        saves = _checks.saves_of_stream({**self.config, "streaming": self.streaming})
        return DistillConfig(output_dir=self.output_dir, **{**self.config, **saves})

    def settings(self) -> Settings:
        """abkd's own settings, short forms expanded; unlike ``distill_config`` independent of the machine."""
        settings = settings_of(self.config)
        settings.expand_short_forms()
        return settings

    def objective(self) -> Objective:
        """The objective that this recipe minimises."""
        return self.settings().objective()

    def values(self) -> dict[str, object]:
        """The values that were set, by name, on one level."""
        own = {name: getattr(self, name) for name in own_fields()}
        return {**{name: value for name, value in own.items() if value is not None}, **self.config}

    def check_ready(self, *, resume: bool = False, output: bool = True, models: bool = True) -> None:
        """Check that all files exist, and that the output directory is free (or has a checkpoint to resume from).

        Args:
            resume: the run continues from the last checkpoint in ``output_dir``.
            output: check the output directory too (in a distributed run only on the main process).
            models: check the models' directories too.

        Raises:
            ConfigError: a file or model directory does not exist.
            OutputDirError: the directory is in use, or has nothing to resume.
        """
        values = self.values()
        problems = [*_checks.missing_data(values), *(_checks.missing_models(values) if models else [])]
        if problems:
            raise ConfigError(_listed("recipe", [f"recipe: {problem}" for problem in problems]))
        if output:
            overwrite = self.config.get("overwrite_output_dir", False)
            resume = resume or self.config.get("resume_from_checkpoint") is not None
            _output.check_output(
                Path(self.output_dir), overwrite=overwrite, resume=resume, inputs=_output.inputs_of(values)
            )


def _in_full(name: str, value: Any) -> Any:
    """The value of a setting, with ``~/`` expanded to the home directory if it is a path or a list of paths."""
    if not value or name not in (*_checks.FILES, *_checks.DIRECTORIES, *_checks.MODELS, "output_dir"):
        return value
    return [*map(in_full, value)] if isinstance(value, list) else in_full(value)


def load(path: str | Path) -> Recipe:
    """Read a recipe; same as :meth:`Recipe.from_yaml`."""
    return Recipe.from_yaml(path)


def dump(recipe: Recipe, path: str | Path | None = None) -> str:
    """Return the recipe as YAML, and write it to ``path`` if given; :func:`load` returns an equal recipe."""
    text = recipe.to_yaml()
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


@cache
def own_fields() -> Mapping[str, object]:
    """Type of every field of a recipe except ``config``, by name."""
    hints = typing.get_type_hints(Recipe)
    return MappingProxyType({f.name: hints[f.name] for f in dataclasses.fields(Recipe) if f.name != "config"})


def _value(name: str, types: Mapping[str, object], value: object, *, flag: bool = False, load_code: bool = True) -> Any:
    if name not in types:
        raise ConfigError(_fields.unknown(name, types, flag=flag))
    try:
        return _fields.coerce(name, types[name], value, load_code=load_code)
    except ConfigError as error:
        raise ConfigError(f"{'--' * flag}{error}") from error


def _is_unset(hint: object, value: object) -> bool:
    """Whether a value unsets its field: ``null``, or for a string given as a flag "" (``null`` may be a name)."""
    if isinstance(value, _text.FlagText):
        return value == "" if hint is not None and _fields.is_text(hint) else value.is_null
    return value is None


def _plain(name: str, value: object) -> object:
    """A value for YAML; a component as its notation, which must parse to the same component."""
    if isinstance(value, _PLAIN):
        if not isinstance(value, list | tuple):
            return value
        if all(isinstance(part, _PLAIN) for part in value):
            return list(value)
        return notation.render(list(value))
    text = notation.render(value)
    if not isinstance(value, Unloaded) and not _reads_back(text, value):
        raise ConfigError(f"{name}: {text} has no notation, so it cannot be part of a recipe; pass it in Python")
    return text


def _reads_back(text: str, value: object) -> bool:
    try:
        return notation.parse(text) == value
    except ConfigError:
        return False


def _listed(where: str, problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    problems = [problem.removeprefix(f"{where}: ") for problem in problems]
    return "\n  - ".join([f"{where}: {len(problems)} problems", *problems])
