"""One ``abkd distill`` of large data until its first step is done: ``… STARTED FILE RECIPE``.

``STARTED`` is ``time.time()`` when the process was launched; the time until the first step, and the peak memory, go to
``FILE`` as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main(started: str, file: str, recipe: str) -> None:
    """Run the recipe and write the measurements."""
    from abkd.cli import collect_rarely

    collect_rarely()  # as the command does

    from abkd.cli._console import configure_logging
    from abkd.recipe import Recipe
    from abkd.run import distill
    from abkd.trainer import DistillTrainer

    configure_logging()
    found: dict[str, float] = {"imported": time.time() - float(started)}
    step: Any = DistillTrainer.training_step

    def timed(*args: Any, **kwargs: Any) -> Any:
        if "seconds" not in found:
            found["seconds"] = time.time() - float(started)
            found["busy"] = sum(os.times()[:4])  # of this process and of the children it has waited for
            found["peak"], found["peak_of_helpers"] = (_peak(who) for who in _WHO)
        return step(*args, **kwargs)

    DistillTrainer.training_step = timed
    trainer = distill(Recipe.from_yaml(recipe))
    train: Any = trainer.train_dataset
    about = {"fingerprint": train.fingerprint, "examples": len(train), "peak_of_run": _peak(resource.RUSAGE_SELF)}
    Path(file).write_text(json.dumps(found | about))


_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _peak(who: int) -> float:
    """The largest resident set in GB (``ru_maxrss`` is in kB, on macOS in bytes)."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


if __name__ == "__main__":
    main(*sys.argv[1:])
