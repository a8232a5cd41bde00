"""A run with repeated random faults: ``soak.py FOLDER VARIANT SEED STEPS [--tmpfs]``.

Prints, as JSON, what happened and whether the final weights and log equal those of an undisturbed run.
One process imports and forks the runs, because importing takes longer than they do.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from abkd.errors import AbkdError
from abkd.trainer import _checkpoints
from training_parts import FROM_BUFFER, SHORT, gpt2, llama, lora, trainer

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"gradient_accumulation_steps": 2},
    "on-policy": {"source": "StudentSamples()", **SHORT},
    "replay": {"source": f"Mix(0.5, {FROM_BUFFER}, Dataset())", **SHORT},
    "adapters": {"peft_config": True},
}
FAULTS = ("SIGTERM", "SIGINT", "SIGKILL", "killed while saving", "full disk", "NaN weight", "NaN gradient")
DAMAGES = ("truncated", "deleted", "bit flipped")
EVERY, MEGABYTES, FINAL = 4, 6, "final.safetensors"


class Fault(TrainerCallback):
    """A fault in the step after ``after``: at its start, at its gradient, or at a time within it."""

    def __init__(self, kind: str, after: int, delay: float, room: int) -> None:
        self.kind, self.after, self.delay, self.room = kind, after, delay, room

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step < self.after:
            return
        if self.kind.startswith("SIG"):
            self._later(getattr(signal, self.kind))
        elif self.kind == "NaN weight":
            with torch.no_grad():
                trained = [p for p in model.parameters() if p.requires_grad]
                trained[self.room % len(trained)].view(-1)[0] = torch.nan
        elif self.kind == "full disk":
            fill(Path(args.output_dir).parent, self.room)
            self.kind = "done"

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step >= self.after and self.kind == "NaN gradient":
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[-1] = torch.nan

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= self.after and control.should_save and self.kind == "killed while saving":
            self._later(signal.SIGKILL)

    def _later(self, number: signal.Signals) -> None:
        timer = threading.Timer(self.delay, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
        self.kind = "done"


def fill(folder: Path, room: int) -> None:
    """Leave ``room`` bytes on the file system; without a separate small one, limit the size of every file."""
    if not os.path.ismount(folder):
        room //= 30  # less than every checkpoint's largest file
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        return
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with (folder / "filler").open("wb") as file:
        file.write(bytes(max(free - room, 0)))


def run(folder: Path, variant: str, steps: int, fault: Fault | None) -> int:
    """One process of the run, from the newest complete checkpoint to its end or its fault; returns its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        code = _train(folder, variant, steps, fault)
    except Exception as error:  # noqa: BLE001, a forked process must not continue as its parent
        traceback.print_exception(error)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _train(folder: Path, variant: str, steps: int, fault: Fault | None) -> int:
    options = dict(VARIANTS[variant])
    if options.pop("peft_config", False):
        options["peft_config"] = lora()
    made = trainer(
        folder,
        llama(0) if variant == "adapters" else gpt2(0),
        max_steps=steps,
        save_strategy="steps",
        save_steps=EVERY,
        save_total_limit=2,
        callbacks=[fault] if fault else [],
        **{"learning_rate": 3e-3, **options},
    )
    try:
        made.train(resume_from_checkpoint=bool(whole(folder)))
    except AbkdError as error:
        print(f"{fault.kind if fault else 'undisturbed'}: {error}", file=sys.stderr)
        return error.exit_code
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save_file({name: value.contiguous().clone() for name, value in made.model.state_dict().items()}, folder / FINAL)
    return 0


def whole(folder: Path) -> list[Path]:
    return [path for path in _checkpoints.checkpoints(folder) if _checkpoints.corruption(path) is None]


def damage(checkpoint: Path, kind: str, draw: random.Random) -> None:
    path = draw.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    if kind == "deleted":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[: draw.randrange(len(content))])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)


EXPECTED = {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9, "killed while saving": -9, "full disk": 4}
EXPECTED |= {"NaN weight": 3, "NaN gradient": 3}


def disturbed(folder: Path, variant: str, steps: int, draw: random.Random) -> tuple[Counter[str], list[str]]:
    """Run to the end through faults; returns how often each happened, and unexpected exits."""
    happened, wrong = Counter[str](), []
    bag, damages = list[str](), list[str]()  # each kind once before any is repeated
    while not (folder / FINAL).exists():
        reached = max([_checkpoints.step_of(path) for path in whole(folder)], default=0)
        bag = bag or draw.sample(FAULTS, len(FAULTS))
        fault = Fault(bag.pop(), reached + draw.randrange(2 * EVERY), draw.random() * 0.06, draw.randrange(60_000))
        kind = fault.kind
        code = run(folder, variant, steps, fault)
        (folder.parent / "filler").unlink(missing_ok=True)
        if code not in (EXPECTED[kind], 0):
            wrong.append(f"{kind} from step {reached}: exit code {code}")
        happened[kind] += code != 0
        if len(whole(folder)) > 1 and draw.random() < 0.6:
            damages = damages or draw.sample(DAMAGES, len(DAMAGES))
            how = damages.pop()
            damage(whole(folder)[-1], how, draw)
            happened[how] += 1
        if len(wrong) > 3 or sum(happened.values()) > 3 * steps:
            break
    return happened, wrong


def log(folder: Path) -> list[tuple[Any, ...]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records if "loss" in record]


def main(folder: Path, variant: str, seed: int, steps: int, *, tmpfs: bool) -> None:
    torch.set_num_threads(1)
    disk = folder / "disk"
    disk.mkdir()
    if tmpfs:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "none", str(disk)], check=True)
    assert run(folder / "undisturbed", variant, steps, None) == 0
    happened, wrong = disturbed(disk / "run", variant, steps, random.Random(seed))
    same = False
    if not wrong:
        one, other = (load_file(path / FINAL) for path in (folder / "undisturbed", disk / "run"))
        same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        wrong += [] if log(folder / "undisturbed") == log(disk / "run") else ["another log"]
    print(json.dumps({"happened": happened, "wrong": wrong, "same weights": same}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), tmpfs="--tmpfs" in sys.argv)
