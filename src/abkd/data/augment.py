"""What may be done to the images of a training set, by chance but repeatably: the list ``augmentation`` of a recipe."""

from abkd.data.images._augment import Augmentation, HorizontalFlip, Mixup, RandomCrop, RandomResizedCrop

__all__ = ["Augmentation", "HorizontalFlip", "Mixup", "RandomCrop", "RandomResizedCrop"]
