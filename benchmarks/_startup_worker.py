"""``abkd distill`` until its first step is done, with the time of each phase: ``… STARTED FILE FLAGS``.

``STARTED`` is ``time.time()`` when the process was launched; the phases go to ``FILE`` as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Marks:
    """Seconds from one mark to the next, by name."""

    def __init__(self, began: float) -> None:
        self.last, self.seconds = began, {}

    def __call__(self, name: str) -> None:
        """Attribute the time since the last mark to ``name``."""
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    def around(self, owner: Any, attribute: str, name: str) -> None:
        """Wrap ``owner.attribute`` so that its time counts for ``name``, except for inner phases with other names."""
        original: Callable[..., Any] = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self("everything else")
            result = original(*args, **kwargs)
            self(name)
            return result

        setattr(owner, attribute, timed)


def main(began: float, file: Path, flags: list[str]) -> None:
    """Run the command line and exit after the first step."""
    mark = Marks(began)
    mark("interpreter")
    import torch  # noqa: F401

    mark("import torch")
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401

    mark("import transformers")
    import abkd.run  # noqa: F401
    from abkd.cli import main as command
    from abkd.trainer._callbacks import ProgressBar

    mark("import abkd")
    watch(mark)

    def begun(*_: Any, **__: Any) -> None:
        mark("everything else")
        mark.seconds["first step begun after"] = mark.last - began

    def done(*_: Any, **__: Any) -> None:
        mark("first step")
        begun_after = mark.seconds.pop("first step begun after")
        file.write_text(json.dumps({"begun": begun_after, "done": mark.last - began, "phases": mark.seconds}))
        raise SystemExit

    ProgressBar.on_step_begin, ProgressBar.on_step_end = begun, done
    sys.argv = ["abkd", "distill", *flags]
    command()


def watch(mark: Marks) -> None:
    """Mark the phases of a run before its first step."""
    import abkd.run
    from abkd.tasks import _text_models, text_generation
    from abkd.trainer import _optimizer, _trainer

    mark.around(_text_models, "load_tokenizer", "tokenizer")
    mark.around(_text_models, "load_student", "models")
    mark.around(_text_models, "load_causal_lm", "models")
    mark.around(abkd.run, "load_data", "rows")
    mark.around(text_generation, "prepare_data", "rows")
    mark.around(text_generation, "load_models", "check the models")
    mark.around(_optimizer.Trainer, "__init__", "transformers.Trainer")
    mark.around(text_generation, "check_mass", "look at the first rows")
    mark.around(_trainer.DistillTrainer, "evaluation_loop", "evaluation before the first step")


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
