"""The version of abkd."""

__version__ = "0.1.0"
