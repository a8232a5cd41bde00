"""Teachers whose rows are worked out once and stored: top-k probabilities, or hidden states with the head."""

from abkd.teachers.caches._identity import identity, image_identity, weights_fingerprint
from abkd.teachers.caches._specs import CachedTeacher, HiddenCache, TopKCache

__all__ = ["CachedTeacher", "HiddenCache", "TopKCache", "identity", "image_identity", "weights_fingerprint"]
