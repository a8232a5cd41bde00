"""The output directory of a run: checks of its path, the files in it that abkd wrote, and a lock.

Every file that abkd writes is first listed in a manifest, so ``--overwrite_output_dir`` removes only what runs wrote.
In folders from before there were manifests, files are recognised by their names.
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
"""The default output directory."""

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
