"""Optional packages: a missing one is reported, with its pip command, before a model is loaded."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from abkd.storage import read_json
from abkd.training_arguments._intervals import word
from abkd.training_arguments._rules import trackers


class Package(NamedTuple):
    """A module to import, and its name for ``pip install``."""

    module: str
    pip: str

    @property
    def installed(self) -> bool:
        """Whether the module can be found; it is not imported."""
        try:
            return importlib.util.find_spec(self.module) is not None
        except (ImportError, ValueError):  # a parent of it is missing
            return False

    def sentence(self, what: str) -> str:
        """The message that ``what`` needs the package, and how to install it."""
        return f"{what} needs the package {self.module.partition('.')[0]}: pip install {self.pip}"


_BITSANDBYTES = Package("bitsandbytes", "'abkd[quantized]'")
PEFT = Package("peft", "'abkd[lora]'")

TRACKERS: Mapping[str, Package | None] = {
    "azure_ml": Package("azureml.core", "azureml-core"),
    "clearml": Package("clearml", "clearml"),
    "codecarbon": Package("codecarbon", "codecarbon"),
    "comet_ml": Package("comet_ml", "comet-ml"),
    "dagshub": Package("dagshub", "dagshub mlflow"),
    "dvclive": Package("dvclive", "dvclive"),
    "flyte": Package("flytekit", "flytekit"),
    "kubeflow": None,
    "mlflow": Package("mlflow", "mlflow"),
    "neptune": Package("neptune", "neptune"),
    "swanlab": Package("swanlab", "swanlab"),
    "tensorboard": Package("tensorboard", "tensorboard"),
    "trackio": Package("trackio", "trackio"),
    "wandb": Package("wandb", "wandb"),
}
"""By their name in ``report_to``; None if there is nothing to install."""

_INSTEAD = {"tensorboard": Package("tensorboardX", "tensorboardX")}  # works as well

OPTIMIZERS: tuple[tuple[str, Package], ...] = (
    (r"adamw_torch_[48]bit", Package("torchao", "torchao")),
    (r"adamw_torch_xla", Package("torch_xla", "torch_xla")),
    (r"adamw_torch_npu_fused", Package("torch_npu", "torch_npu")),
    (r"adamw_anyprecision", Package("torchdistx", "git+https://github.com/pytorch/torchdistx")),
    (r"adamw_apex_fused", Package("apex", "git+https://github.com/NVIDIA/apex")),
    (r"galore_.*", Package("galore_torch", "galore-torch")),
    (r"apollo_.*", Package("apollo_torch", "apollo-torch")),
    (r"grokadamw", Package("grokadamw", "grokadamw")),
    (r"stable_adamw", Package("optimi", "torch-optimi")),
    (r"schedule_free_.*", Package("schedulefree", "schedulefree")),
    (r".*8bit|paged_.*|lion_.*|ademamix.*|rmsprop_bnb.*", _BITSANDBYTES),
)
"""By a pattern of their name in ``optim``; the first match is used."""

QUANTIZERS: Mapping[str, Package] = {
    "aqlm": Package("aqlm", "'aqlm[gpu]'"),
    "auto-round": Package("auto_round", "auto-round"),
    "awq": Package("gptqmodel", "gptqmodel"),
    "bitsandbytes": _BITSANDBYTES,
    "bitsandbytes_4bit": _BITSANDBYTES,
    "bitsandbytes_8bit": _BITSANDBYTES,
    "compressed-tensors": Package("compressed_tensors", "compressed-tensors"),
    "eetq": Package("eetq", "eetq"),
    "fbgemm_fp8": Package("fbgemm_gpu", "fbgemm-gpu"),
    "gguf": Package("gguf", "gguf"),
    "gptq": Package("gptqmodel", "gptqmodel"),
    "hqq": Package("hqq", "hqq"),
    "quanto": Package("optimum.quanto", "optimum-quanto"),
    "quark": Package("quark", "amd-quark"),
    "torchao": Package("torchao", "torchao"),
    "vptq": Package("vptq", "vptq"),
}
"""By the ``quant_method`` of a quantisation."""

_ATTENTION = {
    "flash_attention_2": Package("flash_attn", "flash-attn --no-build-isolation"),
    "flash_attention_3": Package("flash_attn_interface", "flash-attn-3"),
}
_ZOOS = {"timm": Package("timm", "'abkd[vision]'"), "torchvision": Package("torchvision", "'abkd[vision]'")}
_MODEL_OPTIONS = ("model_init_kwargs", "teacher_model_init_kwargs")


def needed_by_settings(values: Mapping[str, object]) -> list[str]:
    """One message for each missing package that a setting of ``DistillConfig`` needs, or unknown tracker."""
    return [*_trackers(values), *_optimizer(values), *_deepspeed(values), *_model_options(values)]


def needed_by_models(names: Iterable[tuple[str, str]]) -> list[str]:
    """The same for models, given as pairs of the setting and its model name."""
    found = []
    for setting, name in names:
        zoo = _ZOOS.get(name.partition(":")[0])
        if zoo is not None and not zoo.installed:
            found.append(zoo.sentence(f"{setting}: {name}"))
        found += [package.sentence(f"{setting}: {name} ({why})") for why, package in _of_folder(Path(name))]
    return found


def _of_folder(folder: Path) -> list[tuple[str, Package]]:
    """Missing packages that a model folder needs: for quantised weights, or an adapter."""
    found = []
    quantised = _json(folder / "config.json").get("quantization_config")
    method = str(quantised.get("quant_method")) if isinstance(quantised, dict) else ""
    if method in QUANTIZERS and not QUANTIZERS[method].installed:
        found.append((f"its weights are quantised by {method}", QUANTIZERS[method]))
    if (folder / "adapter_config.json").is_file() and not PEFT.installed:
        found.append(("it contains an adapter", PEFT))
    return found


def _json(file: Path) -> dict[str, object]:
    try:
        found = read_json(file)
    except (OSError, ValueError):  # loading the model will raise
        return {}
    return found if isinstance(found, dict) else {}


def _trackers(values: Mapping[str, object]) -> list[str]:
    found = []
    for name in sorted(trackers(values) - {"all"}):
        package = TRACKERS.get(name)
        if name not in TRACKERS:
            found.append(f"report_to must be none, all or some of {', '.join(TRACKERS)}, got {name!r}")
        elif package is not None and not any(each.installed for each in (package, _INSTEAD.get(name, package))):
            found.append(package.sentence(f"report_to: {name}"))
    return found


def _optimizer(values: Mapping[str, object]) -> list[str]:
    name = str(word(values.get("optim", "")))
    package = next((package for pattern, package in OPTIMIZERS if re.fullmatch(pattern, name)), None)
    return [] if package is None or package.installed else [package.sentence(f"optim: {name}")]


def _deepspeed(values: Mapping[str, object]) -> list[str]:
    package = Package("deepspeed", "deepspeed")
    return [package.sentence("deepspeed")] if values.get("deepspeed") and not package.installed else []


def _model_options(values: Mapping[str, object]) -> list[str]:
    found = []
    for setting in _MODEL_OPTIONS:
        options = values.get(setting)
        if isinstance(options, Mapping):
            needed = [*_quantizer(options), *_attention(options)]
            found += [package.sentence(f"{setting}: {what}") for what, package in needed if not package.installed]
    return found


def _quantizer(options: Mapping[str, object]) -> list[tuple[str, Package]]:
    bits = [name for name in ("load_in_4bit", "load_in_8bit") if options.get(name)]
    found = [(name, _BITSANDBYTES) for name in bits]
    config = options.get("quantization_config")
    if isinstance(config, Mapping):
        bits = [name for name in ("load_in_4bit", "load_in_8bit") if config.get(name)]
        method = str(config.get("quant_method") or ("bitsandbytes" if bits else ""))
        found += [(f"quantization_config ({method})", QUANTIZERS[method])] if method in QUANTIZERS else []
    return found


def _attention(options: Mapping[str, Any]) -> list[tuple[str, Package]]:
    name = options.get("attn_implementation")
    return [(f"attn_implementation {name}", _ATTENTION[name])] if name in _ATTENTION else []
