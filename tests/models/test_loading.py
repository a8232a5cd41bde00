"""A faulty model directory raises a one-sentence error that names the fault; new or unused weights are never silent."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from abkd import DistillConfig
from abkd.errors import ConfigError
from abkd.models.clip import load_clip
from abkd.models.folders import broken_model, stored_tensors
from abkd.models.loading import load_causal_lm, load_student, load_tokenizer
from abkd.models.vision import load_classifier
from abkd.models.vision._processor import preparation_of
from abkd.recipe import Recipe
from training_parts import SINCE_5, llama, tokenizer

TEACHER = "teacher_model_name_or_path"
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sound"
    llama(0).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def spoilt(sound: Path, tmp_path: Path, spoil: Spoil) -> str:
    folder = tmp_path / "spoilt"
    shutil.copytree(sound, folder)
    spoil(folder)
    return str(folder)


def written(name: str, text: str) -> Spoil:
    return lambda folder: (folder / name).write_text(text)


def configured(**values: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return spoil


def weighed(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return spoil


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(print, folder / "pytorch_model.bin")


def half_a_pickle(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])


def without_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    llama(0).save_pretrained(folder, max_shard_size="60KB")
    next(iter(sorted(folder.glob("model-*"))[1:])).unlink()


def renamed(old: str, new: str) -> Spoil:
    return lambda folder: (folder / old).rename(folder / new)


def removed(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
BROKEN_FILES: dict[str, tuple[Spoil, str]] = {
    "pointer": (written("model.safetensors", POINTER), "model.safetensors is a Git LFS pointer.*run git lfs pull"),
    "empty": (written("model.safetensors", ""), "model.safetensors is empty: download or save the model again"),
    "a web page": (written("model.safetensors", "<!DOCTYPE html><p>404"), "model.safetensors is a web page"),
    "cut short": (cut, r"model.safetensors must have \d+ bytes .*, got \d+"),
    "no header": (written("model.safetensors", "x" * 99), "is truncated or not a safetensors file"),
    "half a pickle": (half_a_pickle, "pytorch_model.bin is truncated"),
    "a shard is missing": (without_a_shard, r"index.json names model-00002-of-\d+.safetensors, not found"),
    "only a config": (removed("model.safetensors"), "has no weights"),
    "GGUF": (renamed("model.safetensors", "model.gguf"), r"only GGUF \(model.gguf\): convert it to safetensors"),
    "no config": (removed("config.json"), "has weights but no config.json"),
    "config cut": (written("config.json", "{nope"), "config.json is not valid JSON"),
    "config is a list": (written("config.json", "[]"), "config.json must hold a JSON object, got a list"),
    "no model_type": (configured(model_type=None), "config.json of .* has no model_type"),
    "NaN in the config": (configured(rms_norm_eps=float("nan")), "config.json of .* has rms_norm_eps: NaN"),
    "absurd width": (configured(hidden_size=10**9), "has an embedding of 340 x 1000000000, but the weights have only"),
    "absurd depth": (
        configured(num_hidden_layers=10**9),
        "has num_hidden_layers: 1000000000, but there are only 12 tensors",
    ),
    "no layers": (configured(num_hidden_layers=-1), "has num_hidden_layers: -1"),
    "code on the hub": (configured(attn_implementation="some/kernel"), "names code on the hub .*, which abkd does not"),
    "nested": (written("config.json", '{"model_type": "llama", "a": ' + "[" * 10**5), "config.json is not valid JSON"),
    "a header of nonsense": (
        lambda folder: (folder / "model.safetensors").write_bytes((9).to_bytes(8, "little") + b'{"a": {}}'),
        "cannot read its header",
    ),
    "also an adapter": (written("adapter_config.json", "{}"), "holds both a model and an adapter"),
}


@pytest.mark.parametrize("fault", BROKEN_FILES)
def test_a_broken_file_is_seen_before_anything_is_loaded(fault: str, sound: Path, tmp_path: Path) -> None:
    spoil, said = BROKEN_FILES[fault]
    folder = spoilt(sound, tmp_path, spoil)
    with pytest.raises(ConfigError, match=f"^{TEACHER}: .*{said}"):
        load_causal_lm(folder, what=TEACHER)


UNLOADABLE: dict[str, tuple[Spoil, str]] = {
    "a pickle of code": (pickled, "its .bin file holds more than tensors, and would run code; use a model in safeten"),
    "other vocabulary": (configured(vocab_size=7), r"weight should have shape \[7, 32\], got \[340, 32\]: config.json"),
    "heads do not divide": (configured(num_attention_heads=5), "not a multiple of the number of attention heads"),
    "unknown activation": (configured(hidden_act="nope"), "KeyError: 'nope'; fix its config.json"),
    "unknown kind": (configured(model_type="nope"), "model type `nope`"),
    "encoder-decoder": (configured(is_encoder_decoder=True), "an encoder-decoder model"),
    "code of its own": (
        configured(model_type="own", auto_map={"AutoConfig": "a.B"}),
        "it needs code that is shipped with the model, which abkd does not run",
    ),
    "a NaN": (weighed(lambda w: w["model.norm.weight"][0].fill_(float("nan"))), "not finite .*in model.norm.weight"),
    "infinite": (weighed(lambda w: w["lm_head.weight"][3, 1].fill_(float("inf"))), "not finite .*in lm_head.weight"),
    "a weight is missing": (weighed(lambda w: w.pop("model.layers.0.mlp.up_proj.weight")), "no weights for .*up_proj"),
    "a layer too many": (
        weighed(lambda w: w.update({"model.layers.1.mlp.up_proj.weight": torch.ones(2, 2)})),
        "has weights that do not match its config.json, such as model.layers.1",
    ),
}


_IN_OTHER_WORDS = ("a pickle of code", "heads do not divide")


@pytest.mark.parametrize(
    "fault", [pytest.param(each, marks=SINCE_5 if each in _IN_OTHER_WORDS else ()) for each in UNLOADABLE]
)
@pytest.mark.filterwarnings("ignore")
def test_a_teacher_that_is_not_all_there_is_refused(fault: str, sound: Path, tmp_path: Path) -> None:
    spoil, said = UNLOADABLE[fault]
    folder = spoilt(sound, tmp_path, spoil)
    with pytest.raises(ConfigError, match=f"^{TEACHER}: .*{said}") as caught:
        load_causal_lm(folder, what=TEACHER)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_teacher_without_some_embeddings_teaches_about_other_text(
    sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = spoilt(sound, tmp_path, weighed(lambda w: w["model.embed_tokens.weight"][5].fill_(float("nan"))))
    load_causal_lm(folder, what=TEACHER)
    assert "not finite for 1 of its tokens, such as id 5" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_is_no_teacher(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**{**llama(0).config.to_dict(), "num_labels": 3, "pad_token_id": 1})
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no weights for lm_head.weight, which would be random"):
        load_causal_lm(str(tmp_path), what=TEACHER)


@pytest.mark.filterwarnings("ignore")
def test_of_a_student_it_is_said_what_is_new_and_what_is_left_over(
    sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["score.weight"] = weights.pop("lm_head.weight")

    folder = spoilt(sound, tmp_path, weighed(change))
    with caplog.at_level(logging.WARNING, "abkd"):
        load_student(folder, use_peft=False)
    assert "has no weights for lm_head.weight; they are initialised randomly" in caplog.text
    assert "has weights that a LlamaForCausalLM does not use: score.weight" in caplog.text


def test_what_is_complete_is_loaded_without_a_word(
    sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tied = tmp_path / "tied"
    llama(0, tie_word_embeddings=True).save_pretrained(tied)
    value_head = weighed(lambda w: w.update({"v_head.summary.weight": torch.ones(1, 32)}))
    with caplog.at_level(logging.INFO, "abkd"):
        for folder in (str(sound), str(tied), spoilt(sound, tmp_path, value_head)):
            assert broken_model(folder) is None
            load_causal_lm(folder, what=TEACHER)
    assert [record for record in caplog.records if record.name == "abkd"] == []


def test_the_tensors_of_a_folder_are_known_without_loading_it(sound: Path) -> None:
    tensors = stored_tensors(str(sound))
    assert tensors["lm_head.weight"].shape == (340, 32)
    assert {tensor.dtype for tensor in tensors.values()} == {"F32"}


@pytest.mark.parametrize("name", ["./nowhere", "no/such/place", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there(name: str) -> None:
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(ConfigError, match=f"TEACHER: there is no model directory '{os.path.expanduser(name)}'"):
            load(name, what="TEACHER")


def test_the_home_directory_is_found(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(sound.parent))
    assert load_tokenizer("~/sound", what=TEACHER).get_vocab() == tokenizer().get_vocab()
    assert load_causal_lm("~/sound", what=TEACHER, torch_dtype="bfloat16").dtype == torch.bfloat16
    assert DistillConfig(output_dir="~/run").output_dir == str(sound.parent / "run")
    recipe = {"model_name_or_path": "~/sound", "teacher_model_name_or_path": ["~/sound"], "train_file": "~"}
    made = Recipe.from_dict({**recipe, "output_dir": "~/a b"})
    assert made.model_name_or_path == str(sound)
    assert (made.train_file, made.output_dir) == ("~", f"{sound.parent}/a b")


CONFIGS: dict[str, dict[str, Any]] = {
    "a type as str() writes it": {"dtype": "torch.float16"},
    "a text for a number": {"vocab_size": "340"},
    "no heads": {"num_attention_heads": 0},
    "a text for a mapping": {"quantization_config": "x"},
}


@SINCE_5
@pytest.mark.parametrize("fault", CONFIGS)
def test_a_fault_of_config_json_is_not_blamed_on_the_tokenizer(fault: str, sound: Path, tmp_path: Path) -> None:
    folder = spoilt(sound, tmp_path, configured(**CONFIGS[fault]))
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(ConfigError) as caught:
            load(folder, what=TEACHER)
        assert "config.json" in str(caught.value)
        assert "no tokenizer" not in str(caught.value)


@SINCE_5
def test_a_head_with_numbers_of_its_own_stays_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    llama(0, tie_word_embeddings=True).save_pretrained(tmp_path)
    torch.manual_seed(1)
    head = torch.randn(340, 32)
    weighed(lambda weights: weights.update({"lm_head.weight": head}))(tmp_path)
    model = load_student(str(tmp_path), use_peft=False)
    assert torch.equal(model.lm_head.weight, head)
    assert not model.config.tie_word_embeddings
    assert "has separate weights for its head, although its config.json ties it" in caplog.text


def test_a_file_is_no_folder(sound: Path) -> None:
    with pytest.raises(ConfigError, match="is a file: give the model directory that contains it"):
        load_tokenizer(str(sound / "model.safetensors"), what="TEACHER")


TOKENIZERS: dict[str, Spoil] = {
    "settings are a list": written("tokenizer_config.json", "[]"),
    "settings are cut": written("tokenizer_config.json", "{nope"),
    "empty": written("tokenizer.json", ""),
    "another object": written("tokenizer.json", "{}"),
    "a pointer": written("tokenizer.json", POINTER),
    "code of its own": written("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["a.B", null]}}'),
    "without its vocabulary": lambda folder: [
        (folder / "tokenizer.json").unlink(),
        written("tokenizer_config.json", '{"tokenizer_class": "LlamaTokenizer"}')(folder),
    ],
    "missing": lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
}


@pytest.mark.parametrize(
    "fault", [pytest.param(each, marks=SINCE_5 if each == "code of its own" else ()) for each in TOKENIZERS]
)
def test_a_broken_tokenizer(fault: str, sound: Path, tmp_path: Path) -> None:
    folder = spoilt(sound, tmp_path, TOKENIZERS[fault])
    with pytest.raises(
        ConfigError, match=r"^model_name_or_path: .*tokenizer (in|from) .* with all of its files"
    ) as caught:
        load_tokenizer(folder, what="model_name_or_path")
    assert "\n" not in str(caught.value)


OWN_CODE = {
    "config.json": {"auto_map": {"AutoConfig": "a.B", "AutoModel": "a.C", "AutoModelForImageClassification": "a.D"}},
    "preprocessor_config.json": {"auto_map": {"AutoImageProcessor": "a.E"}},
    "a.py": {},
}


@pytest.mark.filterwarnings("ignore")
def test_nobody_is_asked_whether_to_run_code_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, values in OWN_CODE.items():
        (tmp_path / name).write_text(json.dumps({"model_type": "own", **values}))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    for load in (load_causal_lm, load_classifier, load_clip):
        with pytest.raises(ConfigError, match=r"custom code|does not run"):
            load(str(tmp_path), what=TEACHER)
    with pytest.raises(ConfigError):
        preparation_of(str(tmp_path))
