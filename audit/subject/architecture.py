"""What has to be known of a family of models to find its hook points. One file a family in ``audit/subject/architectures``.

The names are ours; they say what the tensor is, on every architecture:

    resid_pre           residual stream before the layer
    attn_z              outputs of the attention heads, end to end, before the output projection
    attn_out            what attention adds to the residual stream
    resid_mid           residual stream between attention and MLP, before the MLP's norm
    mlp_in_unweighted   what the MLP reads, normalised, without the norm's gain (and bias, where it has one)
    mlp_in              what the MLP reads: the same times the gain, plus the norm's bias where it has one (GPT-2)
    mlp_out_raw         what the MLP puts out; another tensor than mlp_out where a norm follows it (Gemma)
    mlp_out             what is added to the residual stream for the MLP
    resid_post          residual stream after the layer

A module of the same name is not the same thing in every family (``post_attention_layernorm`` is the MLP's norm on Llama, and the norm of
what attention puts out on Gemma), so nothing here is found by the name of a module alone.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Literal

from audit.errors import SubjectError

Side = Literal["input", "output"]
NAMES = ("resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_in_unweighted", "mlp_in", "mlp_out_raw", "mlp_out", "resid_post")
PACKAGE = "audit.subject.architectures"
HOW_TO_ADD = (
    "Use a model of a known architecture, or add a file of about 30 lines to audit/subject/architectures (llama.py is a pattern)"
    " and a tiny model of it to tests/audit/subject/architectures, where every hook point is computed again by hand."
)


@dataclass(frozen=True, slots=True)
class Place:
    """A side of a module of a layer."""

    module: str
    """Path from the layer; empty for the layer itself."""
    side: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One family of models, by the names that transformers gives its modules."""

    model_types: Mapping[str, str]
    """``config.model_type`` → path, from the causal model, of the module that holds the layers and the final norm."""
    layers: str
    """The list of layers, from that module."""
    final_norm: str
    """The norm before the unembedding, from that module."""
    mlp_norm: str
    """The norm that the MLP reads through, from a layer."""
    norm: Literal["rms", "rms_plus_one", "layer"]
    """``rms``: x / rms(x) · w. ``rms_plus_one``: x / rms(x) · (1 + w). ``layer``: (x − mean) / std · w + b."""
    norms_after_mlp: bool
    """Whether a norm stands between the MLP and the residual stream, so that mlp_out_raw and mlp_out differ."""
    reads: Mapping[str, Place]
    """Hook point → where it can be read; ``mlp_in_unweighted`` is computed from what the norm is given, see ``hookpoints``."""
    writes: Mapping[str, Place]
    """Hook point → where a vector must be added so that the hook point, and all that is computed from it, changes by it."""
    stepwise: bool = False
    """Whether a pass is token embeddings, then layers that take hidden states and ``position_embeddings`` from the backbone's
    ``rotary_emb``, each with an attention that asks transformers' ``AttentionInterface``, then the final norm and the unembedding
    (capped where the configuration caps): then ``audit.steering.layerwise`` can run it layer by layer."""
    opening: tuple[str, ...] = field(default=())
    """Tokens that begin every conversation in the family's chat template. A text that begins with them has them left out of every
    statistic, since their norms are out of proportion; of other texts only the first token is."""


@cache
def architectures() -> Mapping[str, Architecture]:
    """``config.model_type`` → its family, from the files of ``audit/subject/architectures``."""
    found: dict[str, Architecture] = {}
    for entry in sorted(module.name for module in pkgutil.iter_modules(import_module(PACKAGE).__path__)):
        family: Architecture = import_module(f"{PACKAGE}.{entry}").ARCHITECTURE
        found.update(dict.fromkeys(family.model_types, family))
    return found


def architecture_of(model_type: str) -> Architecture:
    """The family of a ``config.model_type``.

    Raises:
        SubjectError: it is not known.
    """
    known = architectures()
    if model_type not in known:
        why = f"The hook points of '{model_type}' models are not known; known are: {', '.join(sorted(known))}."
        raise SubjectError("Unknown architecture", why, HOW_TO_ADD)
    return known[model_type]
