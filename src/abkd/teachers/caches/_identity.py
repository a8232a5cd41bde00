"""What tells one teacher from another, without loading it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from abkd.data.vocabulary import PROBES

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "adapter_model*", "*.gguf")
_CONFIGS = ("config.json", "adapter_config.json")
_SAMPLES, _SAMPLE_BYTES = 64, 4096  # of each weight file: all of it would take as long as loading it


def identity(teacher: str | nn.Module, revision: str | None, tokenizer: Any) -> dict[str, Any]:
    """Which teacher, tokenizer and chat template: what a cache must be of.

    ``teacher`` is, for a directory, a fingerprint of its configuration and of samples of its weights, wherever it lies;
    for a name on the hub, the name and the commit (the revision, where no commit is known); for a model itself, a
    fingerprint of samples of its weights.
    """
    name_or_path = teacher if isinstance(teacher, str) else getattr(teacher, "name_or_path", "")
    return {
        "name": name_or_path,
        "revision": revision,
        "teacher": _teacher(teacher, revision) if isinstance(teacher, str) else _hash(_weights(teacher)),
        "tokenizer": _hash(_vocabulary(tokenizer)),
        "chat_template": _hash([json.dumps(tokenizer.chat_template, sort_keys=True).encode()]),
    }


def fingerprint(values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of plain values."""
    return _hash([json.dumps(values, sort_keys=True).encode()])


def _teacher(name: str, revision: str | None) -> str:
    directory = Path(name).expanduser()
    if directory.is_dir():
        return _hash(_contents(directory))
    return f"{name}@{_commit(name, revision) or revision or 'main'}"


def _contents(directory: Path) -> Iterator[bytes]:
    for file in (directory / name for name in _CONFIGS):
        if file.is_file():
            yield file.name.encode() + file.read_bytes()
    for file in sorted({file for pattern in _WEIGHTS for file in directory.glob(pattern) if file.is_file()}):
        size = file.stat().st_size
        yield f"{file.name} {size}".encode()
        with file.open("rb") as weights:
            for sample in range(_SAMPLES):
                weights.seek(max(size - _SAMPLE_BYTES, 0) * sample // (_SAMPLES - 1))
                yield weights.read(_SAMPLE_BYTES)


def _weights(model: nn.Module) -> Iterator[bytes]:
    for name, tensor in model.state_dict().items():
        yield f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
        flat = tensor.detach().flatten()
        yield flat[:: max(1, flat.numel() // _SAMPLES)].float().cpu().numpy().tobytes()


def _commit(name: str, revision: str | None) -> str | None:
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        file = cached_file(name, "config.json", revision=revision)
    except OSError:  # it cannot be reached; loading it would say so
        return None
    return extract_commit_hash(file, None)


def _vocabulary(tokenizer: Any) -> Iterator[bytes]:
    """All tokens, and what the tokenizer makes of texts on which tokenizers come apart.

    (How it writes itself down changes with its library.)
    """
    yield json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    for probe in PROBES:
        yield json.dumps(tokenizer(probe, add_special_tokens=False)["input_ids"]).encode()


def _hash(parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
