"""The models and the data of a run, by name: plain dataclasses that a recipe is made of."""

from __future__ import annotations

from dataclasses import dataclass

_HELD_OUT = 0.05


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The models of a run, by name."""

    model_name_or_path: str
    """The student: a directory or a hub name."""
    teacher_model_name_or_path: str | list[str] | None = None
    """The teacher, or the members of an ensemble; None if the teacher is made of the student."""
    model_revision: str | None = None
    teacher_model_revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The data of a run, by name. Paths are relative to the working directory; None means "not set"."""

    train_file: str | list[str] | None = None
    """JSONL, JSON, CSV (also compressed) or parquet with prompt/completion, messages or text: a file, a list of files,
    or a pattern such as data/*.jsonl; for images one .npz with arrays."""
    eval_file: str | list[str] | None = None
    train_dir: str | None = None
    """Images in one folder per class, or in one folder without classes."""
    eval_dir: str | None = None
    split_file: str | None = None
    """CLIP: the split of a dataset into train, val and test in CoOp's format (JSON); the images are in train_dir."""
    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_train_split: str = "train"
    dataset_test_split: str | None = None
    streaming: bool = False
    """Read training rows on the fly and keep no copy of them: for data that does not fit on the disk."""
    eval_fraction: float | None = None
    """The fraction of the training rows to hold out if no held-out set is given; by default 0.05, unless there is an
    evaluation split next to training images."""
    pretrain_file: str | list[str] | None = None
    """Plain text for the language-modelling term (lm_coef)."""

    @property
    def share_held_out(self) -> float:
        """``eval_fraction``, or its default."""
        return _HELD_OUT if self.eval_fraction is None else self.eval_fraction


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """LoRA adapters, trained in place of the student's weights."""

    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: str | list[str] | None = None
