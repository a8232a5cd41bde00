"""Checks of a model directory before anything is loaded from it; each fault is reported in one sentence."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from abkd.errors import ConfigError

ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_FOREIGN = {"*.gguf": "GGUF", "*.onnx": "ONNX", "tf_model.h5": "TensorFlow", "flax_model.msgpack": "Flax"}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_LARGEST_HEADER = 100_000_000  # bytes; the limit of safetensors itself
_AGAIN = "download or save the model again"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its dtype as safetensors spells it (``BF16``), and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def is_local(name: str) -> bool:
    """Whether a name must be a path; hub names are ``name`` or ``owner/name``."""
    return name.startswith((".", "/", "~")) or os.path.isabs(name) or name.count("/") > 1 or "\\" in name


def missing_folder(name: str) -> str | None:
    """A message if ``name`` is a file, or a path where no directory exists; else None."""
    path = Path(name).expanduser()
    if path.is_file():
        return f"{name!r} is a file: give the model directory that contains it"
    if is_local(name) and not path.is_dir():
        return f"there is no model directory {name!r}" + (
            "" if os.path.isabs(name) else f" (looking from {os.getcwd()})"
        )
    return None


def broken_model(name: str) -> str | None:
    """The fault in the files of a model (or adapter) directory; None for a valid one and for a hub name.

    Only file names, sizes, JSON and headers are read: it takes milliseconds, however large the weights are.
    """
    folder = Path(name).expanduser()
    if (missing := missing_folder(name)) or not folder.is_dir():
        return missing
    if (folder / ADAPTER).is_file():
        return next(_faults_of_adapter(name, folder), None)
    return next(_faults(name, folder), None)


def check_model_folder(name: str, what: str) -> None:
    """Raise ConfigError if :func:`broken_model` finds a fault; ``what`` is the setting that names the model."""
    if fault := broken_model(name):
        raise ConfigError(f"{what}: {fault}")


def is_adapter(name: str) -> bool:
    """Whether a directory holds a PEFT adapter."""
    return (Path(name).expanduser() / ADAPTER).is_file()


def read_json(file: Path) -> dict[str, object]:
    """Read a JSON file that holds an object.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid JSON ({_first(file)}): {_AGAIN}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold a JSON object, got a {type(values).__name__}: {_AGAIN}")
    return values


def stored_layers(name: str) -> int | None:
    """The number of layers in the ``config.json`` of a valid directory; None for hub names, and if it is not there."""
    file = Path(name).expanduser() / "config.json"
    values = _of_text(read_json(file)) if file.is_file() else {}
    return next((count for key in _LAYERS if isinstance(count := values.get(key), int)), None)


def stored_tensors(name: str) -> dict[str, Stored]:
    """All tensors in the safetensors files of a valid directory, by name; empty for other formats and hub names."""
    found: dict[str, Stored] = {}
    for file in _weight_files(Path(name).expanduser()):
        if file.suffix == ".safetensors":
            found |= _header(file)
    return found


def _faults(name: str, folder: Path) -> Iterator[str]:
    weights = next((folder / each for each in _WEIGHTS if (folder / each).is_file()), None)
    if weights is None:
        yield f"{name!r} has no weights (expected {_WEIGHTS[0]} or {_WEIGHTS[2]}){_instead(folder)}"
    if not (folder / "config.json").is_file():
        yield f"{name!r} has weights but no config.json: {_AGAIN}"
    try:
        config = read_json(folder / "config.json")
        yield from _faults_of_config(name, config)
        for file in _weight_files(folder):
            if fault := fault_of_file(file):
                yield fault
        yield from _faults_of_sizes(name, config, stored_tensors(name))
    except ConfigError as error:
        yield str(error)
    except RecursionError:
        yield f"config.json of {name!r} is nested too deeply: {_AGAIN}"


def _faults_of_adapter(name: str, folder: Path) -> Iterator[str]:
    if any((folder / each).is_file() for each in _WEIGHTS):
        yield (
            f"{name!r} holds both a model and an adapter ({ADAPTER}), which is ambiguous: put them in separate "
            "directories"
        )
    try:
        read_json(folder / ADAPTER)
    except ConfigError as error:
        yield str(error)
    weights = next((folder / each for each in _ADAPTER_WEIGHTS if (folder / each).is_file()), None)
    if weights is None:
        yield f"{name!r} has {ADAPTER} but no {_ADAPTER_WEIGHTS[0]}: download or save the adapter again"
    elif fault := fault_of_file(weights):
        yield fault


def _instead(folder: Path) -> str:
    """The contents of a directory without weights, and the way out."""
    for pattern, kind in _FOREIGN.items():
        if found := sorted(folder.glob(pattern)):
            return f", only {kind} ({found[0].name}): convert it to safetensors, with save_pretrained"
    if inside := sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER}")):
        return f", but adapters in {', '.join(inside)}: use one of these directories"
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    return f", but models in {', '.join(inside)}: use one of these directories" if inside else f": {_AGAIN}"


def _faults_of_config(name: str, config: Mapping[str, object]) -> Iterator[str]:
    if not isinstance(config.get("model_type"), str):
        yield f"config.json of {name!r} has no model_type, so the architecture is unknown: {_AGAIN}"
    for key, value in _walk(config):
        if isinstance(value, float) and math.isnan(value):
            yield f"config.json of {name!r} has {key}: NaN: {_AGAIN}"
        if key.endswith("implementation") and isinstance(value, str) and "/" in value:
            yield f"config.json of {name!r} names code on the hub ({key}: {value}), which abkd does not run: remove it"


def _faults_of_sizes(name: str, config: Mapping[str, object], tensors: Mapping[str, Stored]) -> Iterator[str]:
    """Sizes that do not match the weights: building such a model could exhaust the memory, or never finish."""
    if not tensors:
        return
    values = _of_text(config)
    for key in _LAYERS:
        layers = values.get(key)
        if isinstance(layers, int) and not 1 <= layers <= len(tensors):
            yield f"config.json of {name!r} has {key}: {layers}, but there are only {len(tensors)} tensors: {_AGAIN}"
    rows, width = values.get("vocab_size"), values.get("hidden_size")
    held = sum(tensor.elements for tensor in tensors.values())
    if isinstance(rows, int) and isinstance(width, int) and rows * width > 16 * held:  # 16: in 2 bits or more
        yield f"config.json of {name!r} has an embedding of {rows} x {width}, but the weights have only {held} elements"


def _of_text(config: Mapping[str, object]) -> Mapping[str, object]:
    """The language model's part of a multimodal model's configuration."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _walk(config: object, key: str = "") -> Iterator[tuple[str, object]]:
    """The leaf values of nested JSON, each with the name of its field."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _walk(value, name)
    elif isinstance(config, list):
        for value in config:
            yield from _walk(value, key)
    else:
        yield key, config


def _weight_files(folder: Path) -> list[Path]:
    """The files that the weights are loaded from: the first of the known layouts that exists.

    Raises:
        ConfigError: the index cannot be read, or names a missing file.
    """
    first = next((folder / each for each in _WEIGHTS if (folder / each).is_file()), None)
    if first is None or not first.name.endswith(".index.json"):
        return [] if first is None else [first]
    places = read_json(first).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ConfigError(f"{first} has no weight_map from tensors to files: {_AGAIN}")
    files = [folder / name for name in sorted(set(places.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"{first} names {missing[0]}{more}, not found in that directory: {_AGAIN}")
    return files


def fault_of_file(file: Path) -> str | None:
    """The fault in a file of weights, if any."""
    begin = _first(file, 256)
    if not begin:
        empty = file.stat().st_size == 0
        return f"{file} is empty: {_AGAIN}" if empty else f"{file} cannot be read: check its permissions"
    if begin.startswith("version https://git-lfs"):
        return f"{file} is a Git LFS pointer, not the weights: run git lfs pull in {str(file.parent)!r}"
    if begin.lstrip().lower().startswith(("<!doctype", "<html", "<?xml")):
        return f"{file} is a web page, not weights: {_AGAIN}"
    if file.suffix == ".safetensors":
        try:
            _header(file)
        except ConfigError as error:
            return str(error)
    elif file.suffix == ".bin" and begin.startswith("PK") and not zipfile.is_zipfile(file):
        return f"{file} is truncated: {_AGAIN}"
    return None


def _header(file: Path) -> dict[str, Stored]:
    """The tensors listed in the header of a safetensors file, whose size must agree with it.

    Raises:
        ConfigError: the header cannot be read, or the file is truncated.
    """
    size = file.stat().st_size
    with file.open("rb") as weights:
        length = int.from_bytes(weights.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise ConfigError(f"{file} is truncated or not a safetensors file: {_AGAIN}")
        try:
            header = json.loads(weights.read(length))
            header.pop("__metadata__", None)
            end = max((int(each["data_offsets"][1]) for each in header.values()), default=0)
            tensors = {
                name: Stored(str(each["dtype"]), tuple(map(int, each["shape"]))) for name, each in header.items()
            }
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{file} is not a valid safetensors file, cannot read its header: {_AGAIN}") from error
    if size != 8 + length + end:
        raise ConfigError(f"{file} must have {8 + length + end} bytes according to its header, got {size}: {_AGAIN}")
    return tensors


def _first(file: Path, count: int = 40) -> str:
    """The beginning of a file as text, for a message."""
    try:
        with file.open("rb") as content:
            return content.read(count).decode("utf-8", "replace")
    except OSError:
        return ""
