"""The command ``ulterior``: one file a noun. ``output`` alone writes stdout, ``diagnostics`` alone writes stderr."""

from audit.cli.main import main

__all__ = ["main"]
