"""The tests of numbers as other machines run them: instruction sets, threads and seeds that this one can take.

What it cannot be told: an instruction set that it lacks, another compiler, another build of torch.
"""

from __future__ import annotations

import os
import subprocess
import sys

MACHINES: dict[str, dict[str, str]] = {
    "the plainest vectors, one thread": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
    "AVX2 everywhere, two threads": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ABKD_TEST_THREADS": "2",
    },
    "all it has": {},
}


def main(workers: str) -> int:
    """Run the marked tests as each machine; the number of those on which something failed."""
    failed = []
    for seed, (name, variables) in enumerate(MACHINES.items(), start=1):
        print(f"---- {name}, seed {seed}: {variables}", flush=True)
        processes = max(1, int(workers) // int(variables.get("ABKD_TEST_THREADS", "1")))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            str(processes),
            "-m",
            "machines and not long and not gpu",
            "-q",
        ]
        command.append(f"--hypothesis-seed={seed}")
        if subprocess.run(command, env=os.environ | variables | {"ABKD_TEST_SEED": str(seed)}).returncode:
            failed.append(name)
    print("failed:" if failed else "all passed", *failed)
    return len(failed)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:] or ["2"]))
