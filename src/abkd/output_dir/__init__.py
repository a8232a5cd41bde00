"""The folder that a run writes into: whether it can be one, which files in it are ours, and a lock on it.

Every file of ours is named in a manifest before it is written, so ``--overwrite_output_dir`` removes what runs wrote
and nothing else. A folder from before there were manifests is judged by the names that our files have.
"""

from abkd.output_dir._contents import (
    OF_CHECKPOINT,
    Contents,
    check_overwrite,
    contents,
    files_of,
    note,
    remove_runs,
)
from abkd.output_dir._lock import check_free, claimed
from abkd.output_dir._place import check_inputs, check_place

DEFAULT = "distilled"
"""The folder of a run whose recipe names none."""

__all__ = [
    "DEFAULT",
    "OF_CHECKPOINT",
    "Contents",
    "check_free",
    "check_inputs",
    "check_overwrite",
    "check_place",
    "claimed",
    "contents",
    "files_of",
    "note",
    "remove_runs",
]
