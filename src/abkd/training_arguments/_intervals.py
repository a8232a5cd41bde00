"""When a run logs, evaluates and saves, and which of its checkpoints is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from abkd.errors import ConfigError
from abkd.metrics import HELD_OUT
from abkd.registry import held_out_metrics


def word(value: object) -> Any:
    """The value of an enum member; anything else unchanged."""
    return getattr(value, "value", value)


def intervals(values: Mapping[str, object]) -> dict[str, Any]:
    """When a run saves and evaluates, if only some of these settings are given.

    ``save_steps: 50`` alone means ``save_strategy: steps``, and ``eval_steps`` likewise. ``load_best_model_at_end``
    evaluates whenever a checkpoint is saved. By default a checkpoint is saved after every epoch, and nothing is
    evaluated (the command line then evaluates after every epoch too).
    """
    save, evaluate = (word(values.get(f"{kind}_strategy")) for kind in ("save", "eval"))
    save_steps, eval_steps = values.get("save_steps"), values.get("eval_steps")
    best = bool(values.get("load_best_model_at_end"))
    if save is None:
        of_evaluation = evaluate if evaluate not in (None, "no") else "steps" if eval_steps is not None else None
        save = "steps" if save_steps is not None else (best and of_evaluation) or "epoch"
    if evaluate is None:
        evaluate = "steps" if eval_steps is not None else "epoch" if save == "best" else save if best else "no"
    if save == "steps" and save_steps is None:
        save_steps = eval_steps if best and eval_steps is not None else 500
    if evaluate == "steps" and eval_steps is None and best and save == "steps":
        eval_steps = save_steps
    return {"save_strategy": save, "eval_strategy": evaluate, "save_steps": save_steps, "eval_steps": eval_steps}


def interval_problems(values: Mapping[str, object]) -> list[str]:
    """One message for each number of steps that does not fit its strategy."""
    found = []
    for kind in ("save", "eval"):
        strategy, steps = word(values.get(f"{kind}_strategy")), values.get(f"{kind}_steps")
        if steps is not None and strategy not in (None, "steps"):
            found.append(
                f"{kind}_steps needs {kind}_strategy: steps, got {kind}_strategy: {strategy!r}; remove one of them"
            )
    strategy = word(values.get("logging_strategy"))
    if strategy not in (None, "steps") and values.get("logging_steps", 10) != 10:
        found.append(f"logging_steps needs logging_strategy: steps, got {strategy!r}; remove one of them")
    return [*found, *_never_evaluated(values)]


def _never_evaluated(values: Mapping[str, Any]) -> list[str]:
    """One message if ``eval_delay`` is longer than the run, as far as that is known without its rows."""
    strategy, delay = intervals(values)["eval_strategy"], values.get("eval_delay")
    steps, epochs = values.get("max_steps", -1), values.get("num_train_epochs", 3.0)
    end = {"steps": steps if steps > 0 else None, "epoch": epochs if steps <= 0 else None}.get(strategy)
    if not isinstance(delay, int | float) or end is None or delay <= end:
        return []
    unit = "steps" if strategy == "steps" else "epochs"
    return [f"eval_delay is {delay:g} {unit}, but the run ends after {end:g}: nothing would be evaluated"]


def best_model_problems(values: Mapping[str, Any]) -> list[str]:
    """One message for each problem with how the best checkpoint is chosen, saved and evaluated."""
    found = []
    name = values.get("metric_for_best_model")
    if name is not None:
        known = held_out_metrics(values.get("task", "text-generation"))
        metric = known.get(name.removeprefix(HELD_OUT))
        if metric is None:
            found.append(f"metric_for_best_model must be one of {', '.join(known)}, got {name!r}")
        elif metric.requires and not values.get(metric.requires):
            found.append(f"metric_for_best_model: {name} needs {metric.requires} above 0, which is not set")
    if values.get("load_best_model_at_end"):
        found += _alignment(intervals(values))
    elif intervals(values)["save_strategy"] == "best" and intervals(values)["eval_strategy"] == "no":
        found.append("save_strategy: best saves after an evaluation, but eval_strategy is 'no': set eval_strategy")
    return found


def _alignment(when: Mapping[str, Any]) -> list[str]:
    save, evaluate = when["save_strategy"], when["eval_strategy"]
    way_out = "remove save_strategy or eval_strategy, and it follows the other"
    if save == "no" or evaluate == "no":
        both = f"save_strategy is {save!r} and eval_strategy {evaluate!r}"
        return [f"load_best_model_at_end needs checkpoints and evaluations, but {both}: {way_out}"]
    if save != "best" and save != evaluate:
        both = f"save_strategy is {save!r} and eval_strategy {evaluate!r}"
        return [f"load_best_model_at_end evaluates whenever it saves, but {both}: {way_out}"]
    steps, every = when["save_steps"], when["eval_steps"]
    if save == "steps" and every is not None and not _multiple(steps, every):
        both = f"save_steps must be a multiple of eval_steps, but they are {steps} and {every}"
        return [f"load_best_model_at_end evaluates whenever it saves, so {both}"]
    return []


def _multiple(number: float, of: float) -> bool:
    if not (number > 0 and of > 0) or (number < 1) != (of < 1):
        return number == of
    return math.isclose(number / of, round(number / of))


def settle_metric(values: Mapping[str, Any], *, one_loss: bool) -> dict[str, object]:
    """The metric that selects the best checkpoint, and whether higher is better.

    Args:
        values: the settings.
        one_loss: whether the loss is the same function throughout the run, so that its values are comparable.

    Raises:
        ConfigError: the best checkpoint would be selected by a loss that changes.
    """
    best = bool(values.get("load_best_model_at_end")) or word(values.get("save_strategy")) == "best"
    plateau = word(values.get("lr_scheduler_type")) in ("reduce_lr_on_plateau", "greedy")
    name, higher = values.get("metric_for_best_model"), values.get("greater_is_better")
    known = held_out_metrics(values.get("task", "text-generation"))
    if (name or "loss").removeprefix(HELD_OUT) == "loss" and not one_loss:
        if best or plateau or name is not None:
            others = ", ".join(each for each in known if each != "loss")
            raise ConfigError(
                "the loss changes over this run (a schedule or stages), so its values are not comparable: set "
                f"metric_for_best_model to one of {others}"
            )
        return {}
    name = name or "loss"
    higher = known[name.removeprefix(HELD_OUT)].better == "higher" if higher is None else higher
    found = {"metric_for_best_model": name, "greater_is_better": higher}
    if plateau and higher:
        found["lr_scheduler_kwargs"] = {"mode": "max", **(values.get("lr_scheduler_kwargs") or {})}
    return found
