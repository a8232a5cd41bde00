"""The small networks of the CIFAR distillation literature, by name, and their published checkpoints.

Architectures and parameter names are those of RepDistiller (Tian et al., *Contrastive Representation Distillation*,
arXiv 1910.10699), so checkpoints can be exchanged both ways. Every network ends in global average pooling, so it takes
other sizes than 32×32. ``resnet20_a``, ``resnet32_a`` … are the residual networks with parameter-free shortcuts.
"""

from __future__ import annotations

from abkd.models.cifar._checkpoint import load_checkpoint
from abkd.models.cifar._names import create, find, names

__all__ = ["create", "find", "load_checkpoint", "names"]
