"""The small networks of the CIFAR distillation literature, by name, and other people's checkpoints of them.

Architectures and parameter names are those of RepDistiller (Tian et al., *Contrastive Representation Distillation*,
arXiv 1910.10699), so checkpoints fit both ways. The mean over places comes last in every network: other sizes than
32×32 work as they are. ``resnet20_a``, ``resnet32_a`` … are the residual networks with shortcuts without parameters.
"""

from __future__ import annotations

from abkd.models.cifar._checkpoint import load_checkpoint
from abkd.models.cifar._names import create, find, names

__all__ = ["create", "find", "load_checkpoint", "names"]
