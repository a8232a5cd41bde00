"""The tables of ``benchmarks.vision``: their columns, claims and targets."""

from __future__ import annotations

from benchmarks._training_report import Report, Wanted

_TARGETS = {
    ("abkd ABKD", "abkd KD"): 1.03,
    ("abkd KD", "bare KD"): 1.03,
    ("abkd ABKD", "bare KD"): 1.03,
    ("abkd ABKD", "bare α-β"): None,
    ("abkd labels", "bare labels"): None,
    ("abkd ABDKD", "bare KD"): None,
    ("abkd ABLSD", "bare KD"): None,
    ("abkd ABTTM", "bare KD"): None,
    ("abkd DIST", "bare KD"): None,
    ("abkd KD", "timm KD"): None,
    ("abkd ABKD", "timm KD"): None,
    ("abkd KD", "torchdistill KD"): None,
    ("abkd ABKD", "torchdistill KD"): None,
}
REPORT = Report(
    "One training step of a classifier",
    {
        "resnet": "ResNet-56 → ResNet-20, 32×32, 100 classes, 64 images per step",
        "digits": "convolutions 64, 128 → 8, 16, 8×8, 10 classes, 64 images per step",
        "tiny": "a few filters",
    },
    {"images": "images/s"},
    [Wanted(f"{ours} / {other}", (ours,), (other,), target) for (ours, other), target in _TARGETS.items()],
)
