"""Resident memory of a run that generates, replays, evaluates and saves: ``memory.py FOLDER STEPS``.

Between a quarter of the steps and the last only the log may grow, whose size is counted; and each of two allocators may
have started one block from the system: Python an arena, glibc the top of its heap. A leak of one row of
log-probabilities per step would exceed that, which is tested too (test_t22_soak.py).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from training_parts import FROM_BUFFER, SHORT, gpt2, rows, trainer

ARENA, TOP = 2**20, 132 * 2**10  # of CPython since 3.10, and M_TOP_PAD of glibc with the page that it rounds to
CLASSES = 340


def resident() -> int:
    """Resident bytes of this process, after free memory was returned to the system."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def size(thing: Any) -> int:
    """Bytes of a list or mapping with its contents."""
    inside = [*thing, *thing.values()] if isinstance(thing, Mapping) else thing if isinstance(thing, list) else []
    return sys.getsizeof(thing) + sum(map(size, inside))


class Watch(TrainerCallback):
    """Measures at every quarter of the run."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % (state.max_steps // 4) == 0:
            self.seen.append((resident(), size(state.log_history)))


def main(folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    watch, every = Watch(), {"eval_steps": steps // 20, "save_steps": steps // 20, "save_total_limit": 1}
    made = trainer(
        folder,
        gpt2(0),
        max_steps=steps,
        source=f"Mix(0.5, {FROM_BUFFER}, Dataset())",
        eval_dataset=rows(3),
        eval_strategy="steps",
        save_strategy="steps",
        logging_steps=20,
        callbacks=[watch],
        **every,
        **SHORT,
    )
    made.train()
    (first, log_before), (last, log_after) = watch.seen[0], watch.seen[-1]
    allowed = log_after - log_before + ARENA + TOP
    before = resident()
    kept = [torch.zeros(CLASSES).add_(1) for _ in range(steps - steps // 4)]
    leak = resident() - before
    result = {"steps": steps, "resident": last, "grown": last - first, "allowed": allowed, "leak seen": leak > allowed}
    print(json.dumps({**result, "leak": leak, "kept": len(kept), "seen": [each for each, _ in watch.seen]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
