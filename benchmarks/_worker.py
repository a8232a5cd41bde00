"""One measurement in a fresh process: ``python -m benchmarks._worker JOB``, in JSON."""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any


def main(text: str) -> None:
    """Run a job ``{"do": "timing" | "memory" | "serve", "case", "contestants", "threads", …}``, print the result."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.simplefilter("ignore")  # from other libraries; errors are raised
    from benchmarks._cases import Case, contestant_from

    job: dict[str, Any] = json.loads(text)
    case, threads = Case(**job["case"]), job["threads"]
    if job["do"] == "serve":
        from benchmarks._remote import serve

        serve(case, job["contestants"][0], threads)
        return
    from benchmarks import _timing

    contestants = [contestant_from(fields) for fields in job["contestants"]]
    if job["do"] == "memory":
        result: Any = _timing.memory(case, contestants[0], threads)
    else:
        result = _timing.timing(case, contestants, job["rounds"], threads, check=job["check"])
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
