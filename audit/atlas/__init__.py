"""The strongest connections of every feature of a dictionary, computed once and kept in a folder that answers at once.

Names are looked up on first use: whoever reads an atlas loads neither torch nor scipy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audit.atlas.building import build
    from audit.atlas.reading import Atlas

_HOMES = {"Atlas": "reading", "build": "building"}
__all__ = ["Atlas", "build"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
