"""One pass of a subject over a text, kept as statistics that can be merged, resumed and shipped.

Names are looked up on first use, so that statistics are read without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audit.corpus.activations import open_activations, open_documents
    from audit.corpus.artefact import Artefact, merge_artefacts, open_statistics
    from audit.corpus.scanning import ScanPlan, scan
    from audit.corpus.statistics import CoactivationSums, Statistics, coactivation, empty, merge

_HOMES = {
    "Artefact": "artefact",
    "CoactivationSums": "statistics",
    "ScanPlan": "scanning",
    "Statistics": "statistics",
    "coactivation": "statistics",
    "empty": "statistics",
    "merge": "statistics",
    "merge_artefacts": "artefact",
    "open_activations": "activations",
    "open_documents": "activations",
    "open_statistics": "artefact",
    "scan": "scanning",
}
__all__ = [
    "Artefact",
    "CoactivationSums",
    "ScanPlan",
    "Statistics",
    "coactivation",
    "empty",
    "merge",
    "merge_artefacts",
    "open_activations",
    "open_documents",
    "open_statistics",
    "scan",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
