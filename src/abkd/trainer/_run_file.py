"""``run.json``: the record of a run, with the chunk plan that a resumed run reuses."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from abkd.config import DistillConfig
from abkd.ops import ChunkPlan, plan_chunks
from abkd.storage import atomic_write, read_json, strict_json

logger = logging.getLogger("abkd")

RUN_FILE = "run.json"


def load_chunk_plan(args: DistillConfig, rows: int, classes: int) -> ChunkPlan:
    """The op's chunk size and implementation: as recorded in this output directory, or else chosen now."""
    known = None if args.overwrite_output_dir else read_record(Path(str(args.output_dir))).get("plan")
    if known:
        try:
            return ChunkPlan(**known)
        except TypeError:
            logger.warning("abkd: the chunk plan in %s cannot be read; choosing a new one", RUN_FILE)
    return plan_chunks(rows, classes, args.device, memory_budget_mb=args.memory_budget_mb)


def save_chunk_plan(directory: Path, plan: ChunkPlan) -> None:
    """Store the current chunk plan of a run (smaller after running out of memory) for when it is resumed."""
    known = read_record(directory)
    if known and known.get("plan") != asdict(plan):
        atomic_write(directory / RUN_FILE, strict_json(known | {"plan": asdict(plan)}).encode())


def read_record(directory: Path) -> dict[str, Any]:
    """The values in ``run.json``; empty if it does not exist or, with a warning, if it cannot be read."""
    file = directory / RUN_FILE
    if not file.is_file():
        return {}
    try:
        known = read_json(file)
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict):
        logger.warning("abkd: %s cannot be read, so nothing is compared with it; it will be rewritten", file)
        return {}
    return known
