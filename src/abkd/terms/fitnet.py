"""FitNets: the mean squared distance of a student's feature to a teacher's (Romero et al., ICLR 2015, arXiv 1412.6550).

``MSE(W·f_q, f_p)`` (eq. 3, where it is half the squared norm), with a projector W that is trained with the student and
is not part of it. A common setting beside another term is RepDistiller's weight 100.

    terms:
      - Term(ForwardKL(), ce_weight=1.0)
      - FitNet(student='layer2', teacher='layer2', weight=100)

Text: 'hidden.6' is the state after the sixth layer, at the positions of the rows. Images: the path of a module.
Published: resnet32x4 to resnet8x4 on CIFAR-100, 73.50 % (KD 73.33; RepDistiller's table). Not reproduced here. In the
paper, hints come first and labels afterwards: ``stages((1, [FitNet(...)]), (2, [Term(...)]))``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from abkd.errors import ConfigError
from abkd.origin import Origin
from abkd.schedules import Schedule
from abkd.terms._base import LossTerm, ModelInfo, Needs, OpenTerm, TermInputs, TermLoss, check_term, times, whose


@dataclass(frozen=True)
class FitNet(LossTerm):
    """``weight · mean over the rows of MSE(W·f_q, f_p)``, the mean over the entries of the teacher's feature.

    Of feature maps ``[C, H, W]`` the larger one is averaged down to the size of the smaller one, and W is a 1 x 1
    convolution; of features ``[..., C]`` W is a linear layer. Without a projector where both have the same width,
    unless it is asked for.

    Args:
        student, teacher: names of features, "hidden.k" or the path of a module.
        projector: True: always with a projector; None: only where the widths differ.

    Raises:
        ConfigError: an invalid argument; at ``open``, features of different kinds.
    """

    student: str
    teacher: str
    weight: float | Schedule = 1.0
    origin: Origin | None = None
    projector: bool | None = None

    def __post_init__(self) -> None:
        check_term(self)
        for name in ("student", "teacher"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value):
                raise ConfigError(f"FitNet: {name} must be the name of a feature, such as 'hidden.6', got {value!r}")
        if self.projector not in (None, True):
            raise ConfigError(f"FitNet: projector must be True or None, got {self.projector!r}")

    def needs(self) -> Needs:
        return Needs(student_features=(self.student,), teacher_features=(self.teacher,))

    def open(self, models: ModelInfo) -> OpenTerm:
        mine, theirs = models.student_features[self.student], models.teacher_features[self.teacher]
        if len(mine) != len(theirs) or len(mine) not in (1, 2, 3):
            raise ConfigError(
                f"{self!r} compares features of one kind, got shapes {list(mine)} (student) and {list(theirs)} "
                "(teacher) per row; choose modules with outputs of the same number of dimensions"
            )
        return _Hint(self, mine, theirs)

    def written(self, rows: str, squared: bool = False) -> str:
        projected = f"W·{self.student}"
        return times(self.weight, f"mean over {whose(self.origin, rows)} of MSE({projected}, {self.teacher})")


class _Hint(OpenTerm):
    def __init__(self, spec: FitNet, mine: tuple[int, ...], theirs: tuple[int, ...]) -> None:
        super().__init__()
        self.student, self.teacher, self.channels = spec.student, spec.teacher, 0 if len(mine) == 3 else -1
        widths = mine[self.channels], theirs[self.channels]
        needed = widths[0] != widths[1] or spec.projector
        self.projector = nn.Linear(*widths) if needed else None

    def forward(self, inputs: TermInputs) -> TermLoss:
        distance = self._distance(inputs)
        return TermLoss(inputs.spec.weight * inputs.mean(distance), columns={"feature_distance": distance.detach()})

    def values(self, inputs: TermInputs, divergence: Tensor | None, cross_entropy: Tensor | None) -> Tensor:
        return inputs.spec.weight * self._distance(inputs)

    def _distance(self, inputs: TermInputs) -> Tensor:
        """``[N]``: the mean squared distance of each row's features, in float32."""
        assert inputs.teacher is not None
        mine, theirs = inputs.student.features[self.student], inputs.teacher.features[self.teacher].detach()
        if self.channels == 0:
            size = min(mine.shape[-2], theirs.shape[-2]), min(mine.shape[-1], theirs.shape[-1])
            mine, theirs = (adaptive_avg_pool2d(each, size) for each in (mine, theirs))
            mine, theirs = mine.movedim(1, -1), theirs.movedim(1, -1)
        if self.projector is not None:
            mine = self.projector(mine.to(self.projector.weight.dtype))
        return (mine.float() - theirs.float()).square().flatten(1).mean(1)
