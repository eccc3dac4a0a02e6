"""Gemma 2 and Gemma 3: norms before and after both attention and MLP; ``post_attention_layernorm`` is not the MLP's norm here.

Gemma 3 of 4B and more is a model of images and text, whose layers lie one level deeper.
"""

from __future__ import annotations

from types import MappingProxyType

from audit.subject.architecture import Architecture, Place

ARCHITECTURE = Architecture(
    model_types=MappingProxyType({"gemma2": "model", "gemma3_text": "model", "gemma3": "model.language_model"}),
    layers="layers",
    final_norm="norm",
    mlp_norm="pre_feedforward_layernorm",
    norm="rms_plus_one",
    stepwise=True,
    norms_after_mlp=True,
    reads=MappingProxyType(
        {
            "resid_pre": Place("", "input"),
            "attn_z": Place("self_attn.o_proj", "input"),
            "attn_out": Place("post_attention_layernorm", "output"),
            "resid_mid": Place("pre_feedforward_layernorm", "input"),
            "mlp_in_unweighted": Place("pre_feedforward_layernorm", "input"),
            "mlp_in": Place("mlp", "input"),
            "mlp_out_raw": Place("mlp", "output"),
            "mlp_out": Place("post_feedforward_layernorm", "output"),
            "resid_post": Place("", "output"),
        }
    ),
    writes=MappingProxyType(
        {
            "resid_pre": Place("", "input"),
            "attn_z": Place("self_attn.o_proj", "input"),
            "attn_out": Place("post_attention_layernorm", "output"),
            "resid_mid": Place("post_attention_layernorm", "output"),
            "mlp_in": Place("mlp", "input"),
            "mlp_out_raw": Place("mlp", "output"),
            "mlp_out": Place("post_feedforward_layernorm", "output"),
            "resid_post": Place("", "output"),
        }
    ),
    opening=("<bos>", "<start_of_turn>", "user", "\n"),
)
