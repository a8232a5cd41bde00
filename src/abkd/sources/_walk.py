"""Every source of a tree, also of one that changes while the run progresses."""

from __future__ import annotations

from collections.abc import Iterator

from abkd.errors import ConfigError
from abkd.schedules import Schedule, stages
from abkd.sources._types import Source


def stage_sources(source: Source | Schedule) -> tuple[Source, ...]:
    """The source itself, or the different ones among the stages.

    Raises:
        ConfigError: something in it is not a source.
    """
    if isinstance(source, Source):
        return (source,)
    if not isinstance(source, stages):
        raise ConfigError(
            f"source must be one, such as StudentSamples(), or stages((0.3, Dataset()), (0.7, StudentSamples())), "
            f"but it is {source!r}"
        )
    return tuple(dict.fromkeys(found for _, value in source.parts for found in stage_sources(value)))


def walk(source: Source | Schedule) -> Iterator[Source]:
    """All sources in the tree: each before its parts."""
    for found in stage_sources(source):
        yield found
        for part in found.parts:
            yield from walk(part)
