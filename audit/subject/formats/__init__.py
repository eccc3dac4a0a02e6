"""Public on-disk formats of dictionaries, one a file; ``open_dictionary`` finds out which one a folder is in."""

from __future__ import annotations

from pathlib import Path

from audit.errors import SubjectError
from audit.subject.dictionary import Dictionary
from audit.subject.formats import circuit_tracer_clt, circuit_tracer_plt
from audit.subject.formats.circuit_tracer import CLT_KIND, PLT_KIND, read_config

__all__ = ["open_dictionary"]

_LOADERS = {CLT_KIND: circuit_tracer_clt.load, PLT_KIND: circuit_tracer_plt.load}


def open_dictionary(folder: Path, d_model: int) -> Dictionary:
    """Open a dictionary, whatever its format, and check that it is as wide as the model.

    Args:
        folder: what the dictionary's makers published.
        d_model: width of the model's residual stream.

    Raises:
        SubjectError: no such folder, a format that is not known, a damaged or missing file, or another width.
    """
    if not folder.is_dir():
        raise SubjectError("No dictionary", f"There is no directory '{folder}'.", "Give the directory of a dictionary.")
    kind = str(read_config(folder).get("model_kind"))
    if kind not in _LOADERS:
        raise SubjectError(
            "Unknown dictionary format",
            f"config.yaml in '{folder}' says model_kind '{kind}'.",
            f"Use a dictionary in circuit-tracer's format, of kind {' or '.join(_LOADERS)}.",
        )
    dictionary = _LOADERS[kind](folder)
    if dictionary.d_model != d_model:
        raise SubjectError(
            "The dictionary does not fit the model",
            f"It reads vectors of width {dictionary.d_model}, but the model's residual stream has width {d_model}.",
            "Use the dictionary that was trained on this model.",
        )
    return dictionary
