"""Where the teacher's rows come from."""

from abkd.teachers._live import Live

__all__ = ["Live"]
