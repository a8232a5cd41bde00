"""The student of CLIP base-to-new distillation: a frozen image tower with learnt prompts and a learnt projector."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from abkd.errors import ConfigError
from abkd.models.clip import ClassHead
from abkd.models.vision import Classifier, Preparation
from abkd.storage import atomic_write, disk_errors

DESCRIPTION_FILE = "prompted_clip.json"
WEIGHTS_FILE = "model.safetensors"
_PROMPT_STD = 0.02
_AS_THEY_COME = Preparation()


class PromptedStudent(nn.Module):
    """A CLIP image tower that learns by deep visual prompts and a projector only (PromptKD, arXiv 2403.02781).

    ``prompt_length`` learnt tokens join those of the image before the first layer; each of the first ``prompt_depth``
    layers has its own in their place, and behind them they go on as any token. The image feature goes through the
    projector (linear, batch norm, ReLU, linear: to the width of the teacher's) to the teacher's head.

    The tower is frozen and in eval mode whatever :meth:`train` says. The projector's batch norm is trained, and in
    train mode while the student is: what it computes depends on which images share a batch, so other micro-batches are
    another run. A batch of one has no variance; it is normalised by the running statistics and leaves them alone.

    Args:
        clip: the student's ``CLIPModel`` of transformers; its text tower is not kept.
        head: the teacher's head; the student has a copy.
        prompt_length: tokens.
        prompt_depth: layers; 0 learns the projector only.

    Raises:
        ConfigError: fewer than 1 token, or more layers than the tower has.
    """

    def __init__(self, clip: Any, head: ClassHead, *, prompt_length: int = 4, prompt_depth: int = 9) -> None:
        super().__init__()
        config = clip.vision_model.config
        if prompt_length < 1:
            raise ConfigError(
                f"prompt_length is at least 1 token, but got {prompt_length}; prompt_depth=0 has no prompts"
            )
        if not 0 <= prompt_depth <= config.num_hidden_layers:
            raise ConfigError(
                f"prompt_depth is 0 to {config.num_hidden_layers}, the layers of the student's image tower, but got "
                f"{prompt_depth}"
            )
        self.vision_model: Any = clip.vision_model.requires_grad_(False)
        self.visual_projection: nn.Linear = clip.visual_projection.requires_grad_(False)
        prompts = _PROMPT_STD * torch.randn(prompt_depth, prompt_length, config.hidden_size)
        self.prompts = nn.Parameter(prompts, requires_grad=prompt_depth > 0)
        self.projector: nn.Module = _projector(self.visual_projection.out_features, head.class_features.shape[1])
        self.head = ClassHead(head.class_features, head.scale, head.class_names)
        self._no_masks = _no_masks(self.vision_model.encoder.layers[0])
        self.train(self.training)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels ``[B, 3, S, S]`` to logits ``[B, C]``, float32."""
        return self.head(self.features(pixel_values))

    def features(self, pixel_values: Tensor) -> Tensor:
        """``[B, 3, S, S]`` to image features ``[B, D]`` of the teacher's width, of any length."""
        return self.projector(self._tower(pixel_values).float())

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.vision_model.eval()
        self.visual_projection.eval()
        return self

    def save_pretrained(self, directory: Path | str, preparation: Preparation = _AS_THEY_COME) -> None:
        """Write what :func:`load_student` needs, and nothing else is needed then: neither of the two CLIPs.

        Args:
            preparation: how the student wants its pixels, kept with it.

        Raises:
            StorageError: the disk refuses.
        """
        from safetensors.torch import save_file

        depth, length, _ = self.prompts.shape
        told = {
            "class_names": self.head.class_names,
            "prompt_length": length,
            "prompt_depth": depth,
            "feature_width": self.visual_projection.out_features,
            "teacher_width": self.head.class_features.shape[1],
            "preparation": asdict(preparation),
            "vision": self.vision_model.config.to_dict(),
        }
        directory = Path(directory)
        with disk_errors(f"the student in {directory}", "Make room there, or choose another directory."):
            directory.mkdir(parents=True, exist_ok=True)
            weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
            save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt"})
            atomic_write(directory / DESCRIPTION_FILE, json.dumps(told, indent=1, ensure_ascii=False).encode())

    def _tower(self, pixel_values: Tensor) -> Tensor:
        """What the CLIP's own ``get_image_features`` computes, with the prompts among the tokens."""
        tower, depth = self.vision_model, len(self.prompts)
        tokens = tower.embeddings(pixel_values)
        own = tokens.shape[1]
        if depth:
            tokens = self._with_prompt(tokens, 0)
        tokens = tower.pre_layrnorm(tokens)
        for number, layer in enumerate(tower.encoder.layers):
            if 0 < number < depth:
                tokens = self._with_prompt(tokens[:, :own], number)
            tokens = _first(layer(tokens, **self._no_masks))
        return self.visual_projection(tower.post_layernorm(tokens[:, 0]))

    def _with_prompt(self, tokens: Tensor, number: int) -> Tensor:
        prompt = self.prompts[number].to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([tokens, prompt], dim=1)


class _BatchNorm(nn.BatchNorm1d):
    """Takes a batch of one too, by the running statistics, which it leaves alone."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name for it
        if not self.training or len(input) > 1:
            return super().forward(input)
        return nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def _projector(width: int, teacher_width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, teacher_width),
        _BatchNorm(teacher_width),
        nn.ReLU(),
        nn.Linear(teacher_width, teacher_width),
    )


def _no_masks(layer: Any) -> dict[str, None]:
    """Images need no mask, but a layer asks: for one, or before version 5 of transformers for two."""
    return dict.fromkeys(
        name for name in inspect.signature(layer.forward).parameters if name.endswith("attention_mask")
    )


def _first(out: Any) -> Tensor:
    """Before version 5 of transformers, a layer's output was a tuple."""
    return out if isinstance(out, Tensor) else out[0]


def load_student(directory: Path | str) -> Classifier:
    """The classifier that :meth:`PromptedStudent.save_pretrained` wrote, in eval mode.

    Raises:
        ConfigError: there is none in ``directory``, or its files do not fit each other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    try:
        if not (directory / DESCRIPTION_FILE).is_file():
            raise FileNotFoundError
        told = json.loads((directory / DESCRIPTION_FILE).read_bytes())
        student = _rebuilt(told)
        student.load_state_dict(load_file(directory / WEIGHTS_FILE), assign=True)  # each in the dtype it was trained in
        kept = told["preparation"]
        preparation = Preparation(**{**kept, "mean": tuple(kept["mean"]), "std": tuple(kept["std"])})
    except FileNotFoundError as error:
        raise ConfigError(
            f"{directory} holds no prompted CLIP student ({DESCRIPTION_FILE} and {WEIGHTS_FILE}): name the output "
            "directory of a run with task: zero-shot-image-classification"
        ) from error
    except (AttributeError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the prompted CLIP student in {directory} is damaged: {' '.join(str(error).split())}"
        ) from error
    return Classifier(student.eval(), preparation, student.head.class_names, str(directory))


def _rebuilt(told: dict[str, Any]) -> PromptedStudent:
    """A student of the right shapes; its numbers are random still."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    unwanted = ("attn_implementation", "dtype")  # the one may name code, the other is that of the weights themselves
    plain = {key: value for key, value in told["vision"].items() if not any(each in key for each in unwanted)}
    config = CLIPVisionConfig(**{**plain, "projection_dim": told["feature_width"]})
    empty = torch.zeros(len(told["class_names"]), told["teacher_width"])
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten: the caller's random numbers stay his
        clip = CLIPVisionModelWithProjection(config)
        head = ClassHead(empty, torch.ones(()), told["class_names"])
        return PromptedStudent(clip, head, prompt_length=told["prompt_length"], prompt_depth=told["prompt_depth"])
