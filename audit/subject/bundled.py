"""Where the subject that ships with the package lies."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def folder() -> Path:
    """The bundled organism's folder, as an ordinary path."""
    return Path(str(resources.files("audit"))) / "organism" / "shipped"
