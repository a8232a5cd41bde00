"""Counts kept while rows become examples: bad rows, truncated rows, and remarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from abkd.data.account import Account
from abkd.data.bad_rows import BadRowError, OnBadRow
from abkd.data.remarks import Remark
from abkd.data.rows import Row
from abkd.data.tokenize import Example, TokenizedRow
from abkd.errors import DataError

NAMED_ROWS = 10
"""Number of bad rows that an error message lists."""

_COUNTS = ("rows", "truncated", "cut_tokens", "rendered", "plain")


@dataclass
class Tally:
    """Counts of rows. ``counts``: as in :class:`Account`. ``bad``: the first bad rows, with location and reason."""

    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    remarks: Counter[Remark] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def examples_of(self, row: Row, place: str, steps: Callable[[Row], TokenizedRow]) -> list[Example]:
        """Count a row and return the examples that ``steps`` make of it; none for a bad row."""
        self.counts["rows"] += 1
        try:
            made = steps(row)
        except BadRowError as error:
            self.dropped[error.reason] += 1
            self._name_bad([f"{place}: {error}"])
            return []
        self.remarks.update(made.remarks)
        form = {"chat": "rendered", "plain": "plain"}.get(made.form)
        self.counts.update({"truncated": int(made.cut > 0), "cut_tokens": made.cut} | ({form: 1} if form else {}))
        return made.examples

    def add(self, later: Tally) -> None:
        """Add the counts of later rows."""
        self.counts.update(later.counts)
        self.dropped.update(later.dropped)
        self.remarks.update(later.remarks)
        self._name_bad(later.bad)

    def check(self, rows: int, name: str, on_bad_row: OnBadRow) -> None:
        """Raise DataError, with the first bad rows, if they are not to be dropped, or if all ``rows`` are bad."""
        count = self.dropped.total()
        if count and on_bad_row == "error":
            more = f"; and {count - len(self.bad)} more" if count > len(self.bad) else ""
            raise DataError(
                f"{name}: {count} of {rows} rows cannot be used: {'; '.join(self.bad)}{more}. Fix them, or set "
                "on_bad_row: drop to train without them"
            )
        if count == rows:
            reasons = ", ".join(f"{count} × {reason}" for reason, count in self.dropped.most_common())
            raise DataError(f"{name}: all {rows} rows were dropped ({reasons})")

    def account(self) -> Account:
        """The account that is stored with a dataset; reasons in order of frequency."""
        return Account(dropped=dict(self.dropped.most_common()), **{name: self.counts[name] for name in _COUNTS})

    def plain(self) -> dict[str, object]:
        """The tally as JSON values."""
        remarks = [[*remark, count] for remark, count in self.remarks.items()]
        return {"counts": dict(self.counts), "dropped": dict(self.dropped), "remarks": remarks, "bad": self.bad}

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> Tally:
        """The tally from the output of :meth:`plain`."""
        remarks = Counter({Remark(*remark): count for *remark, count in values["remarks"]})
        return cls(Counter(values["counts"]), Counter(values["dropped"]), remarks, list(values["bad"]))

    def _name_bad(self, more: list[str]) -> None:
        self.bad += more[: NAMED_ROWS - len(self.bad)]
