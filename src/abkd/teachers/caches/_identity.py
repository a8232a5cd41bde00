"""The identity of a teacher, computed without loading it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from abkd.data.vocabulary import PROBES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from abkd.models.vision import Classifier

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "adapter_model*", "*.gguf")
_CONFIGS = ("config.json", "adapter_config.json")
_OF_IMAGES = (*_CONFIGS, "abkd.json", "preprocessor_config.json")  # these specify how pixels are preprocessed
_HOW_TO_LOAD = {"revision", "dtype", "token", "cache_dir", "local_files_only", "trust_remote_code"}
_SAMPLES, _SAMPLE_BYTES = 64, 4096  # per weight file: reading all of it would take as long as loading it


def identity(teacher: str | nn.Module, revision: str | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """The teacher, tokenizer and chat template that a cache must match.

    The entry ``teacher`` is, for a directory, a fingerprint of its configuration and of samples of its weights,
    independent of its path; for a hub name, the name and the commit (the revision, if no commit is known); for a model,
    a fingerprint of samples of its weights.
    """
    name_or_path = teacher if isinstance(teacher, str) else getattr(teacher, "name_or_path", "")
    return {
        "name": name_or_path,
        "revision": revision,
        "teacher": _teacher(teacher, revision) if isinstance(teacher, str) else _hash(_weights(teacher)),
        "tokenizer": _hash(_vocabulary(tokenizer)),
        "chat_template": _hash([json.dumps(tokenizer.chat_template, sort_keys=True).encode()]),
    }


def image_identity(teacher: str | Classifier, options: Mapping[str, Any] | None = None) -> dict[str, object]:
    """The image classifier, with its preprocessing, that a cache of images must match.

    ``options`` (teacher_model_init_kwargs) are part of the identity; a file that they name counts by its content. A
    name implies its preprocessing; for a classifier object, the preprocessing is hashed with samples of the weights. A
    ``python:…`` name does not identify the files that its function reads: pass the classifier that it builds.
    """
    given = dict(options or {})
    revision = given.get("revision")
    if isinstance(teacher, str):
        name, known = teacher, _image_teacher(teacher, revision)
        own = {key: _content(value) for key, value in sorted(given.items()) if key not in _HOW_TO_LOAD}
        known += f" {fingerprint(own)}" if own else ""
    else:
        name = teacher.source or type(teacher.model).__name__
        known = _hash([*_weights(teacher.model), repr(teacher.preparation).encode()])
    return {"name": name, "revision": revision, "teacher": known, "images": True}


def weights_fingerprint(models: Iterable[nn.Module]) -> str:
    """A hash (16 hex digits) of names, shapes and samples of the weights, the same in float32 and bfloat16."""
    return _hash(part for model in models for part in _rounded(model))


def _rounded(model: nn.Module) -> Iterator[bytes]:
    for name, tensor in _tensors(model):
        yield f"{name} {tuple(tensor.shape)}".encode()
        some = _some(tensor)
        some = some.to(torch.bfloat16).view(torch.int16) if some.is_floating_point() else some
        yield some.numpy().tobytes()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the state dict; entries of quantised layers may hold several tensors, or other values."""
    for name, value in model.state_dict().items():
        for place, part in tree_flatten_with_path(value)[0]:
            if isinstance(part, Tensor):
                yield name + keystr(place), part


def _some(tensor: Tensor) -> Tensor:
    """A sample of the tensor's numbers (fewer than 2 · _SAMPLES), on the CPU."""
    plain = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach()
    flat = plain.flatten()
    return flat[:: max(1, flat.numel() // _SAMPLES)].cpu()


def fingerprint(values: Mapping[str, object]) -> str:
    """A hash (16 hex digits) of plain values."""
    return _hash([json.dumps(values, sort_keys=True).encode()])


def _teacher(name: str, revision: str | None) -> str:
    directory = Path(name).expanduser()
    if directory.is_dir():
        return _hash(_contents(directory))
    return f"{name}@{_commit(name, revision) or revision or 'main'}"


def _image_teacher(name: str, revision: str | None) -> str:
    directory = Path(name).expanduser()
    if directory.is_dir():
        return _hash(_contents(directory, _OF_IMAGES))
    return name if ":" in name else _teacher(name, revision)  # names such as cifar:NAME are not on the hub


def _content(value: object) -> str:
    """The content of the file that an option names, or the option itself."""
    file = Path(value).expanduser() if isinstance(value, str) and value else None
    return _hash(_samples(file)) if file is not None and file.is_file() else repr(value)


def _contents(directory: Path, configs: Sequence[str] = _CONFIGS) -> Iterator[bytes]:
    for file in (directory / name for name in configs):
        if file.is_file():
            yield file.name.encode() + file.read_bytes()
    for file in sorted({file for pattern in _WEIGHTS for file in directory.glob(pattern) if file.is_file()}):
        yield f"{file.name} {file.stat().st_size}".encode()
        yield from _samples(file)


def _samples(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as weights:
        for sample in range(_SAMPLES):
            weights.seek(max(size - _SAMPLE_BYTES, 0) * sample // (_SAMPLES - 1))
            yield weights.read(_SAMPLE_BYTES)


def _weights(model: nn.Module) -> Iterator[bytes]:
    for name, tensor in _tensors(model):
        yield f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
        yield _some(tensor).float().numpy().tobytes()


def _commit(name: str, revision: str | None) -> str | None:
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        file = cached_file(name, "config.json", revision=revision)
    except OSError:  # not reachable; loading it will raise
        return None
    return extract_commit_hash(file, None)


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> Iterator[bytes]:
    """All tokens, and the ids of probe texts on which tokenizers differ.

    (A tokenizer's own serialisation changes with the version of its library.)
    """
    yield json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    for probe in PROBES:
        yield json.dumps(tokenizer(probe, add_special_tokens=False)["input_ids"]).encode()


def _hash(parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
