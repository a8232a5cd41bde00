"""Teachers whose rows are computed once and stored: top-k probabilities, or hidden states with the head."""

from abkd.teachers.caches._build import Built, build_cache
from abkd.teachers.caches._identity import identity, image_identity, weights_fingerprint
from abkd.teachers.caches._images import EpochImages
from abkd.teachers.caches._manifest import read_manifest
from abkd.teachers.caches._readers import CacheReader
from abkd.teachers.caches._specs import CachedTeacher, HiddenCache, TopKCache

__all__ = [
    "Built",
    "CacheReader",
    "CachedTeacher",
    "EpochImages",
    "HiddenCache",
    "TopKCache",
    "build_cache",
    "identity",
    "image_identity",
    "read_manifest",
    "weights_fingerprint",
]
