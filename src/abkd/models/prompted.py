"""The student of CLIP base-to-new distillation: a frozen image tower with learned prompts and a learned projector."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from abkd.errors import ConfigError
from abkd.models.clip import ClassHead
from abkd.models.vision import Classifier, Preparation
from abkd.storage import atomic_write, disk_errors

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPVisionModelWithProjection

DESCRIPTION_FILE = "prompted_clip.json"
WEIGHTS_FILE = "model.safetensors"
_PROMPT_STD = 0.02
_UNCHANGED = Preparation()


class PromptedStudent(nn.Module):
    """A CLIP image tower that is trained by deep visual prompts and a projector only (PromptKD, arXiv 2403.02781).

    ``prompt_length`` learned tokens are appended to those of the image before the first layer; each of the first
    ``prompt_depth`` layers replaces them by its own, and later layers process them like any token. The image feature
    goes through the projector (linear, batch norm, ReLU, linear, to the teacher's feature width) to the teacher's head.

    The tower is frozen and stays in eval mode under :meth:`train`. The projector's batch norm is trained, and in train
    mode with the student: its output depends on which images share a batch, so other micro-batches give another run. A
    batch of one has no variance; it is normalised by the running statistics and does not update them.

    Args:
        clip: the student's ``CLIPModel`` of transformers; its text tower is not kept.
        head: the teacher's head; the student has a copy.
        prompt_length: the number of prompt tokens.
        prompt_depth: the number of prompted layers; 0 trains the projector only.

    Raises:
        ConfigError: fewer than 1 token, or more layers than the tower has.
    """

    def __init__(
        self,
        clip: CLIPModel | CLIPVisionModelWithProjection,
        head: ClassHead,
        *,
        prompt_length: int = 4,
        prompt_depth: int = 9,
    ) -> None:
        super().__init__()
        config = clip.vision_model.config
        if prompt_length < 1:
            raise ConfigError(f"prompt_length must be >= 1, got {prompt_length}; for no prompts, set prompt_depth=0")
        if not 0 <= prompt_depth <= config.num_hidden_layers:
            raise ConfigError(
                f"prompt_depth must be 0 to {config.num_hidden_layers}, the number of layers in the student's image "
                f"tower, got {prompt_depth}"
            )
        self.vision_model = clip.vision_model.requires_grad_(False)
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

    def save_pretrained(self, directory: Path | str, preparation: Preparation = _UNCHANGED) -> None:
        """Write everything that :func:`load_student` needs; neither CLIP is needed after that.

        Args:
            preparation: the student's preprocessing, saved with it.

        Raises:
            StorageError: writing fails.
        """
        from safetensors.torch import save_file

        depth, length, _ = self.prompts.shape
        description = {
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
            atomic_write(directory / DESCRIPTION_FILE, json.dumps(description, indent=1, ensure_ascii=False).encode())

    def _tower(self, pixel_values: Tensor) -> Tensor:
        """The CLIP's ``get_image_features``, with the prompts among the tokens."""
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
    """Batch norm that normalises a batch of one by the running statistics, without an update."""

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


def _no_masks(layer: nn.Module) -> dict[str, None]:
    """The mask arguments of a layer, all None: one, or two before version 5 of transformers."""
    return dict.fromkeys(
        name for name in inspect.signature(layer.forward).parameters if name.endswith("attention_mask")
    )


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A layer's output, which was a tuple before version 5 of transformers."""
    return out if isinstance(out, Tensor) else out[0]


def load_student(directory: Path | str) -> Classifier:
    """Load the classifier that :meth:`PromptedStudent.save_pretrained` wrote, in eval mode.

    Raises:
        ConfigError: there is none in ``directory``, or its files do not match each other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    try:
        if not (directory / DESCRIPTION_FILE).is_file():
            raise FileNotFoundError
        description = json.loads((directory / DESCRIPTION_FILE).read_bytes())
        student = _rebuilt(description)
        student.load_state_dict(load_file(directory / WEIGHTS_FILE), assign=True)  # keeps the dtype of each weight
        kept = description["preparation"]
        preparation = Preparation(**{**kept, "mean": tuple(kept["mean"]), "std": tuple(kept["std"])})
    except FileNotFoundError as error:
        raise ConfigError(
            f"no prompted CLIP student in {directory} (expected {DESCRIPTION_FILE} and {WEIGHTS_FILE}): give the "
            "output directory of a run with task: zero-shot-image-classification"
        ) from error
    except (AttributeError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the prompted CLIP student in {directory} is damaged: {' '.join(str(error).split())}"
        ) from error
    return Classifier(student.eval(), preparation, student.head.class_names, str(directory))


def _rebuilt(description: dict[str, Any]) -> PromptedStudent:
    """A student of the right shapes, still with random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    unwanted = ("attn_implementation", "dtype")  # the first may name code, the second is that of the weights
    plain = {key: value for key, value in description["vision"].items() if not any(each in key for each in unwanted)}
    config = CLIPVisionConfig(**{**plain, "projection_dim": description["feature_width"]})
    empty = torch.zeros(len(description["class_names"]), description["teacher_width"])
    with torch.random.fork_rng(devices=[]):  # these weights are overwritten: leave the caller's RNG state unchanged
        clip = CLIPVisionModelWithProjection(config)
        head = ClassHead(empty, torch.ones(()), description["class_names"])
        length, depth = description["prompt_length"], description["prompt_depth"]
        return PromptedStudent(clip, head, prompt_length=length, prompt_depth=depth)
