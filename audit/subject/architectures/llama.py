"""Llama, and the families that are built alike: a norm before attention, a norm before the MLP, none after."""

from __future__ import annotations

from types import MappingProxyType

from audit.subject.architecture import Architecture, Place

ARCHITECTURE = Architecture(
    model_types=MappingProxyType({"llama": "model", "mistral": "model", "qwen2": "model", "qwen3": "model"}),
    layers="layers",
    final_norm="norm",
    mlp_norm="post_attention_layernorm",
    norm="rms",
    stepwise=True,
    norms_after_mlp=False,
    reads=MappingProxyType(
        {
            "resid_pre": Place("", "input"),
            "attn_z": Place("self_attn.o_proj", "input"),
            "attn_out": Place("self_attn", "output"),
            "resid_mid": Place("post_attention_layernorm", "input"),
            "mlp_in_unweighted": Place("post_attention_layernorm", "input"),
            "mlp_in": Place("mlp", "input"),
            "mlp_out_raw": Place("mlp", "output"),
            "mlp_out": Place("mlp", "output"),
            "resid_post": Place("", "output"),
        }
    ),
    writes=MappingProxyType(
        {
            "resid_pre": Place("", "input"),
            "attn_z": Place("self_attn.o_proj", "input"),
            "attn_out": Place("self_attn", "output"),
            "resid_mid": Place("self_attn", "output"),
            "mlp_in": Place("mlp", "input"),
            "mlp_out_raw": Place("mlp", "output"),
            "mlp_out": Place("mlp", "output"),
            "resid_post": Place("", "output"),
        }
    ),
)
