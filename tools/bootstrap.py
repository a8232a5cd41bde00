"""Create the virtual environment and install abkd into it from the lock: ``python tools/bootstrap.py .venv demo,dev``.

Needs only the standard library. pip's output goes to ``<venv>/install.log``; the terminal shows large downloads, as a
sign of progress, and the end of the log if pip fails.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "constraints.txt"
LARGE = re.compile(r"Downloading (\S+) \((\d{2,}[\d.]* MB|[\d.]+ GB)\)|Processing \S*/(torch-\S+\.whl)")


def main() -> int:
    """Create the environment if necessary, install, and return pip's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path, help="directory of the environment")
    parser.add_argument("extras", help="comma-separated extras of abkd, for example demo,dev")
    arguments = parser.parse_args()
    started = time.monotonic()
    print(f"Installing abkd[{arguments.extras}] into {arguments.venv} from {LOCK.name} (a few minutes the first time)")
    status = install(arguments.venv, arguments.extras)
    if status == 0:
        print(f"Installed in {time.monotonic() - started:.0f} s.")
    return status


def install(directory: Path, extras: str) -> int:
    """Install abkd with ``extras`` into the environment at ``directory``, created if it is missing or has no pip."""
    python = directory / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
        venv.EnvBuilder(clear=True, with_pip=True, symlinks=True).create(directory)
    log = directory / "install.log"
    log.unlink(missing_ok=True)
    pip = [str(python), "-m", "pip", "install", "--no-input", "--constraint", str(LOCK)]
    return logged([*pip, "--upgrade", "pip"], log) or logged(
        [*pip, "--build-constraint", str(LOCK), "--editable", f"{ROOT}[{extras}]"], log
    )


def logged(command: list[str], log: Path) -> int:
    """Run ``command`` with its output in ``log``; print the large downloads, and the end of the log if it fails."""
    with (
        log.open("a") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            file.flush()
            if found := LARGE.search(line):
                print(" ", found[3] or f"{found[1]}  {found[2]}", flush=True)
    if process.returncode:
        print(
            *log.read_text().splitlines()[-25:], f"pip failed; its full output is in {log}", sep="\n", file=sys.stderr
        )
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
