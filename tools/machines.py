"""Run the numerical tests as other machines would: with other instruction sets, thread counts and seeds.

Not covered: instruction sets that this machine lacks, other compilers, other builds of torch.
"""

from __future__ import annotations

import os
import subprocess
import sys

MACHINES: dict[str, dict[str, str]] = {
    "baseline vector instructions, one thread": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
    "AVX2 everywhere, two threads": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ABKD_TEST_THREADS": "2",
    },
    "all instructions of this machine": {},
}


def main(workers: str) -> int:
    """Run the marked tests as each machine; returns the number of machines with failures."""
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
