"""From image files and arrays to batches of rows: load, check, split, augment, collate."""

from abkd.data.images._collate import ImageCollator, label_of
from abkd.data.images._coop import base_and_new, read_coop_split
from abkd.data.images._dataset import ImageDataset, ImageExample, prepare_images
from abkd.data.images._images import Images
from abkd.data.images._load import held_out_beside, held_out_splits, load_images
from abkd.data.images._split import split_images
from abkd.data.labels import MOST_CLASSES

__all__ = [
    "MOST_CLASSES",
    "ImageCollator",
    "ImageDataset",
    "ImageExample",
    "Images",
    "base_and_new",
    "held_out_beside",
    "held_out_splits",
    "label_of",
    "load_images",
    "prepare_images",
    "read_coop_split",
    "split_images",
]
