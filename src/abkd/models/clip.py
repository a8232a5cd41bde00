"""CLIP models as image classifiers: a zero-shot teacher that knows the classes by their captions, a prompted student.

Both share one head: the text features of the classes, computed once with the teacher's text tower, times the teacher's
logit scale (PromptKD, arXiv 2403.02781). So a student feature that equals the teacher's gives the teacher's logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abkd.errors import ConfigError, VocabularyError
from abkd.models.folders import check_model_folder
from abkd.models.pretrained import check_finite, in_short
from abkd.models.vision import Classifier, Preparation, preparation_of

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

TEMPLATE = "a photo of a {}."
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_CAPTIONS_AT_ONCE = 256


class ClassHead(nn.Module):
    """A cosine classifier: ``logits = scale · normalised(feature) · class_featuresᵀ``.

    Always in float32, also under autocast: with CLIP's scale of 100, logits in bfloat16 would be off by a quarter.

    Args:
        class_features: ``[C, D]``, unit vectors.
        scale: the factor on the cosines.
        class_names: the names of the C classes in order.
    """

    class_features: Tensor
    scale: Tensor

    def __init__(self, class_features: Tensor, scale: Tensor, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.register_buffer("class_features", class_features.detach().float().clone())
        self.register_buffer("scale", scale.detach().float().clone())

    def forward(self, features: Tensor) -> Tensor:
        """``[B, D] -> [B, C]``."""
        with torch.autocast(features.device.type, enabled=False):
            directions = nn.functional.normalize(features.float(), dim=-1)
            return self.scale.float() * directions @ self.class_features.float().T


class ZeroShot(nn.Module):
    """A CLIP that classifies images by the captions of the classes.

    The text tower is not kept: the class features are already computed.

    Args:
        clip: a ``CLIPModel`` of transformers.
        class_features: the result of :func:`class_features` for it.
        class_names: the names of the classes in order.
    """

    def __init__(self, clip: CLIPModel, class_features: Tensor, class_names: Sequence[str]) -> None:
        super().__init__()
        self.vision_model = clip.vision_model
        self.visual_projection: nn.Module = clip.visual_projection
        self.head = ClassHead(class_features, clip.logit_scale.exp(), class_names)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels ``[B, 3, S, S]`` to logits ``[B, C]``, float32."""
        return self.head(self.visual_projection(self.vision_model(pixel_values=pixel_values).pooler_output))


@torch.no_grad()
def class_features(
    clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], template: str = TEMPLATE
) -> Tensor:
    """The text features of classes: ``[C, D]`` float32 unit vectors, on the device of ``clip``.

    Args:
        clip: a ``CLIPModel`` of transformers.
        tokenizer: its tokenizer.
        names: the class names; underscores become spaces.
        template: a caption, ``{}`` where the name goes.

    Raises:
        ConfigError: the template has no ``{}``, there is no class, or a caption is longer than the text tower's
            context.
        VocabularyError: the captions of two classes have the same tokens.
    """
    captions = _captions(names, template)
    ids = tokenizer(captions)["input_ids"]
    _check_captions(ids, captions, clip.text_model.config.max_position_embeddings)
    training, device = clip.training, clip.device
    clip.eval()
    features = []
    for begin in range(0, len(captions), _CAPTIONS_AT_ONCE):
        some = captions[begin : begin + _CAPTIONS_AT_ONCE]
        inputs = tokenizer(some, padding=True, return_tensors="pt").to(device)
        pooled = clip.text_model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
        features.append(nn.functional.normalize(clip.text_projection(pooled).float(), dim=-1))
    clip.train(training)
    return torch.cat(features)


def load_clip(name_or_path: str, *, what: str, **kwargs: object) -> CLIPModel:
    """A ``CLIPModel`` of transformers in eval mode, by name or path, float32 unless ``dtype`` is given.

    Args:
        what: "model_name_or_path" or "teacher_model_name_or_path", for messages.
        kwargs: for ``from_pretrained``.

    Raises:
        ConfigError: there is no CLIP, or its checkpoint is incomplete.
    """
    from transformers import AutoModel, CLIPModel

    check_model_folder(name_or_path, what)
    kwargs = {"dtype": torch.float32, "trust_remote_code": False, **kwargs}
    try:
        model, info = AutoModel.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    except Exception as error:  # from many libraries; each means that the model cannot be loaded
        raise ConfigError(f"{what}: cannot load a CLIP from {name_or_path!r}: {in_short(error)}") from error
    if not isinstance(model, CLIPModel):
        raise ConfigError(
            f"{what}: expected a CLIPModel of transformers with both towers (such as openai/clip-vit-base-patch16), "
            f"got {name_or_path!r}, a {type(model).__name__}; use --task image-classification for classifiers"
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ConfigError(
            f"{what}: {len(missing)} weights are missing from {name_or_path!r} and would be random, such as "
            f"{missing[0]}; use a complete checkpoint"
        )
    check_finite(model.named_parameters(), f"{what}: {name_or_path!r}")
    return model.eval()


def clip_preparation(name_or_path: str, clip: CLIPModel, *, revision: str | None = None) -> Preparation:
    """The preprocessing of a CLIP: that of its image processor, else OpenAI's; at the image size of its vision tower.

    Raises:
        ConfigError: its image processor does something that a :class:`Preparation` cannot.
    """
    found = preparation_of(name_or_path, revision=revision) or Preparation(CLIP_MEAN, CLIP_STD)
    side = clip.vision_model.config.image_size
    return found if found.size == side else replace(found, size=side, resized=side)


def load_clip_pair(
    teacher_name: str,
    student_name: str,
    class_names: Sequence[str],
    *,
    template: str = TEMPLATE,
    prompt_length: int = 4,
    prompt_depth: int = 9,
    teacher_options: Mapping[str, Any] | None = None,
    student_options: Mapping[str, Any] | None = None,
) -> tuple[Classifier, Classifier]:
    """Teacher and student for distillation without labels, with the teacher's class features as their head.

    Args:
        teacher_name, student_name: CLIPs of transformers, by name or path.
        class_names: all classes, base and new, in the order of the logits.
        template: the caption of a class, ``{}`` where its name goes.
        prompt_length: learned tokens in each prompted layer of the student.
        prompt_depth: how many of its layers are prompted, from the first on. 4 and 9 are PromptKD's.
        teacher_options, student_options: for ``from_pretrained``, such as ``dtype`` and ``revision``.

    Returns:
        A :class:`ZeroShot` and a :class:`PromptedStudent`. The teacher is frozen and in eval mode; the student's
        prompts and projector are trained (and initialised with torch's global generator).

    Raises:
        ConfigError: a model cannot be loaded, or an argument is invalid.
        VocabularyError: the captions of two classes have the same tokens.
    """
    from abkd.models.prompted import PromptedStudent

    of_student = dict(student_options or {})
    _captions(class_names, template)  # before a model is loaded
    teacher = _load_teacher(teacher_name, tuple(class_names), template, dict(teacher_options or {}))
    clip = load_clip(student_name, what="model_name_or_path", **of_student)
    head: Any = teacher.model.head
    student = PromptedStudent(clip, head, prompt_length=prompt_length, prompt_depth=prompt_depth)
    preparation = clip_preparation(student_name, clip, revision=of_student.get("revision"))
    return teacher, Classifier(student, preparation, teacher.class_names, student_name)


def _load_teacher(name: str, class_names: tuple[str, ...], template: str, options: Mapping[str, Any]) -> Classifier:
    from abkd.models.loading import load_tokenizer

    what, revision = "teacher_model_name_or_path", options.get("revision")
    clip = load_clip(name, what=what, **options)
    tokenizer = load_tokenizer(name, what=what, revision=revision)
    model = ZeroShot(clip, class_features(clip, tokenizer, class_names, template), class_names)
    preparation = clip_preparation(name, clip, revision=revision)
    return Classifier(model.requires_grad_(False).eval(), preparation, class_names, name)


def _captions(names: Sequence[str], template: str) -> list[str]:
    if template.count("{}") != 1:
        raise ConfigError(
            f"the template needs exactly one {{}} for the class name, as in {TEMPLATE!r}, got {template!r}"
        )
    if not names:
        raise ConfigError("CLIP needs class names, got none: set class_names")
    return [template.replace("{}", name.replace("_", " ")) for name in names]


def _check_captions(ids: Sequence[Sequence[int]], captions: Sequence[str], most: int) -> None:
    first: dict[tuple[int, ...], str] = {}
    for tokens, caption in zip(ids, captions, strict=True):
        if len(tokens) > most:
            raise ConfigError(
                f"the text tower reads at most {most} tokens, got {len(tokens)} for the caption {caption!r}: shorten it"
            )
        twin = first.setdefault(tuple(tokens), caption)
        if twin is not caption:
            raise VocabularyError(
                f"the captions of two classes, {twin!r} and {caption!r}, have the same tokens: give the classes "
                "different names"
            )
