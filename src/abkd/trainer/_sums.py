"""Sums of the logged metrics over the rows of a step, and of the steps since the last log."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from abkd.trainer._context import Processes


class MetricSums:
    """Sums over rows in this process; reading them takes the sum over all processes."""

    def __init__(self) -> None:
        self._since_log: dict[str, Tensor] = {}
        self._of_step: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Forget everything."""
        self._since_log, self._of_step = {}, {}

    def add(self, out: Mapping[str, Tensor]) -> None:
        """Add a micro-batch: its ``loss``, the number of its ``rows``, and sums of metrics over them."""
        for name in ("rows", *(name for name in out if name != "rows")):
            value = out[name].detach().double()
            if name != "loss":
                self._since_log[name] = self._since_log.get(name, 0.0) + value
            self._of_step[name] = self._of_step.get(name, 0.0) + value

    def begin_step(self) -> None:
        """Forget the previous step."""
        self._of_step = {}

    def since_log(self, processes: Processes) -> dict[str, float]:
        """The means over the rows since the last call; empty if there were none."""
        sums, self._since_log = self._since_log, {}
        return _means(sums, processes)

    def of_step(self, processes: Processes) -> dict[str, float]:
        """The ``loss`` of the current step and the means over its rows."""
        sums = dict(self._of_step)
        loss = sums.pop("loss", None)
        return ({} if loss is None else {"loss": processes.sum(loss).item()}) | _means(sums, processes)


def _means(sums: Mapping[str, Tensor], processes: Processes) -> dict[str, float]:
    totals = {name: processes.sum(value).item() for name, value in sums.items()}
    rows = max(totals.pop("rows", 0.0), 1.0)
    return {name: value / rows for name, value in totals.items()}
