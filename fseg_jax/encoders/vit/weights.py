"""The names of a ViT's tensors in checkpoints of timm, DINO, CONCH, KEEP, PathoDuet and transformers."""

import numpy as np

from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.encoders.weight_rules import Layout, Rules, identity, join_linear, to_linear


def _drop_batch(value: np.ndarray) -> np.ndarray:
    """Drop the batch axis: (1, n, c) → (n, c); (1, c) stays."""
    return value.reshape(-1, value.shape[-1])


def _flatten_patches(weight: np.ndarray) -> np.ndarray:
    """Make a linear kernel: (out, colours, patch, patch) → (patch · patch · colours, out)."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _add_class_position(token: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Add the class token's position to the class token."""
    return _drop_batch(token).astype(np.float32) + _drop_batch(positions)[:1].astype(np.float32)


def _drop_class_position(positions: np.ndarray) -> np.ndarray:
    return _drop_batch(positions)[1:]


def _add_key_bias(query: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Join the biases of q and v, between them that of k, which is none."""
    return np.concatenate([query, np.zeros_like(query), value])


def _take_first_third(bias: np.ndarray) -> np.ndarray:
    """Take q's part of the bias of q, k and v."""
    return bias[: len(bias) // 3]


def _take_other_thirds(bias: np.ndarray) -> np.ndarray:
    """Take k's and v's part of the bias of q, k and v."""
    return bias[len(bias) // 3 :]


def _swap_first_positions(positions: np.ndarray) -> np.ndarray:
    """Put the class token's position before that of a token which is published before it."""
    positions = _drop_batch(positions)
    return np.concatenate([positions[1:2], positions[:1], positions[2:]])


def _flatten(value: np.ndarray) -> np.ndarray:
    return value.reshape(-1)


# Names inside a block, as timm has them. DINOv2 calls the gated MLP's products w12 and w3.
_TIMM_BLOCK: Rules = {
    r"(blocks\.\d+\.norm[12])\.scale": ((r"\1.weight",), identity),
    r"(blocks\.\d+\.norm[12])\.bias": ((r"\1.bias",), identity),
    r"(blocks\.\d+\.attn\.(?:qkv|proj))\.kernel": ((r"\1.weight",), to_linear),
    r"(blocks\.\d+\.attn\.(?:qkv|proj))\.bias": ((r"\1.bias",), identity),
    r"(blocks\.\d+\.ls[12])": ((r"\1.gamma",), identity),
    r"(blocks\.\d+\.mlp\.fc[12])\.kernel": ((r"\1.weight",), to_linear),
    r"(blocks\.\d+\.mlp\.fc[12])\.bias": ((r"\1.bias",), identity),
}
_TIMM_ENDS: Rules = {
    r"patch_embed\.kernel": ((r"patch_embed.proj.weight",), _flatten_patches),
    r"patch_embed\.bias": ((r"patch_embed.proj.bias",), identity),
    r"norm\.scale": ((r"norm.weight",), identity),
    r"norm\.bias": ((r"norm.bias",), identity),
}
_TOKENS: Rules = {
    r"cls_token": ((r"cls_token",), _drop_batch),
    r"reg_token": ((r"reg_token",), _drop_batch),
    r"pos_embed": ((r"pos_embed",), _drop_batch),
}
# DINOv2 adds the class token's position before the registers join, and gives registers none. timm writes that
# as a position embedding without entries for the prefix.
_DINOV2_REGISTER_TOKENS: Rules = {
    r"cls_token": ((r"cls_token", r"pos_embed"), _add_class_position),
    r"reg_token": ((r"register_tokens",), _drop_batch),
    r"pos_embed": ((r"pos_embed",), _drop_class_position),
}
_POOL: Rules = {
    r"pool\.query": ((r"attn_pool_contrast.query",), _flatten),
    r"pool\.(ln_[qk])\.scale": ((r"attn_pool_contrast.\1.weight",), identity),
    r"pool\.(ln_[qk])\.bias": ((r"attn_pool_contrast.\1.bias",), identity),
    r"pool\.(to_\w+)\.kernel": ((r"attn_pool_contrast.\1.weight",), to_linear),
    r"pool\.norm\.scale": ((r"ln_contrast.weight",), identity),
    r"pool\.norm\.bias": ((r"ln_contrast.bias",), identity),
}

# CONCH's first version has torch's own attention in its pooling.
_POOL_OF_CONCH_V1: Rules = {
    r"pool\.to_q\.kernel": ((r"attn_pool_contrast.attn.q_proj_weight",), to_linear),
    r"pool\.to_kv\.kernel": (
        (r"attn_pool_contrast.attn.k_proj_weight", r"attn_pool_contrast.attn.v_proj_weight"),
        join_linear,
    ),
    r"pool\.to_q\.bias": ((r"attn_pool_contrast.attn.in_proj_bias",), _take_first_third),
    r"pool\.to_kv\.bias": ((r"attn_pool_contrast.attn.in_proj_bias",), _take_other_thirds),
    r"pool\.to_out\.kernel": ((r"attn_pool_contrast.attn.out_proj.weight",), to_linear),
    r"pool\.to_out\.bias": ((r"attn_pool_contrast.attn.out_proj.bias",), identity),
    **_POOL,
}

# Heads that trainers of DINO, DINOv2 and iBOT save beside the network, and classifiers.
_HEADS = (
    r"head\..*",
    r"dino_head\..*",
    r"ibot_head\..*",
    r"dino_loss\..*",
    r"ibot_patch_loss\..*",
    r"fc_norm\..*",
)
_UNPACKED = {r"\.w12\.": ".fc1.", r"\.w3\.": ".fc2."}
# FSDP-trained DINOv2 numbers its blocks within chunks: blocks.chunk.index.
_NATIVE_NAMES = {
    r"^(?:module\.)?(?:backbone\.|encoder\.)?": "",
    r"^blocks\.\d+\.(\d+)\.": r"blocks.\1.",
    **_UNPACKED,
}

_EVA_BLOCK: Rules = {
    r"(blocks\.\d+)\.ls([12])": ((r"\1.gamma_\2",), identity),
    r"(blocks\.\d+\.attn)\.qkv\.bias": ((r"\1.q_bias", r"\1.v_bias"), _add_key_bias),
}


def _split_gate(gate: str, value: str, out: str) -> Rules:
    """Make the rules for a gated MLP whose first product is published as two."""
    return {
        r"(blocks\.\d+\.mlp)\.fc1\.kernel": ((rf"\1.{gate}.weight", rf"\1.{value}.weight"), join_linear),
        r"(blocks\.\d+\.mlp)\.fc1\.bias": ((rf"\1.{gate}.bias", rf"\1.{value}.bias"), join_linear),
        r"(blocks\.\d+\.mlp)\.fc2\.kernel": ((rf"\1.{out}.weight",), to_linear),
        r"(blocks\.\d+\.mlp)\.fc2\.bias": ((rf"\1.{out}.bias",), identity),
    }


_HF_LAYER = r"encoder.layer.\1."


def _hf_rules(self_attention: str, block: Rules, tokens: Rules) -> Rules:
    """Make the rules for transformers' names, which have q, k and v apart."""
    qkv = tuple(f"{_HF_LAYER}{self_attention}.{part}" for part in ("query", "key", "value"))
    return {
        r"patch_embed\.kernel": ((r"embeddings.patch_embeddings.projection.weight",), _flatten_patches),
        r"patch_embed\.bias": ((r"embeddings.patch_embeddings.projection.bias",), identity),
        r"norm\.scale": ((r"layernorm.weight",), identity),
        r"norm\.bias": ((r"layernorm.bias",), identity),
        r"blocks\.(\d+)\.attn\.qkv\.kernel": (tuple(f"{part}.weight" for part in qkv), join_linear),
        r"blocks\.(\d+)\.attn\.qkv\.bias": (tuple(f"{part}.bias" for part in qkv), join_linear),
        r"blocks\.(\d+)\.attn\.proj\.kernel": ((f"{_HF_LAYER}attention.output.dense.weight",), to_linear),
        r"blocks\.(\d+)\.attn\.proj\.bias": ((f"{_HF_LAYER}attention.output.dense.bias",), identity),
        **block,
        **tokens,
    }


_HF_TOKENS: Rules = {
    r"cls_token": ((r"embeddings.cls_token",), _drop_batch),
    r"pos_embed": ((r"embeddings.position_embeddings",), _drop_batch),
}
_HF_REGISTER_TOKENS: Rules = {
    r"cls_token": ((r"embeddings.cls_token", r"embeddings.position_embeddings"), _add_class_position),
    r"reg_token": ((r"embeddings.register_tokens",), _drop_batch),
    r"pos_embed": ((r"embeddings.position_embeddings",), _drop_class_position),
}
_HF_VIT_BLOCK: Rules = {
    r"blocks\.(\d+)\.norm1\.scale": ((f"{_HF_LAYER}layernorm_before.weight",), identity),
    r"blocks\.(\d+)\.norm1\.bias": ((f"{_HF_LAYER}layernorm_before.bias",), identity),
    r"blocks\.(\d+)\.norm2\.scale": ((f"{_HF_LAYER}layernorm_after.weight",), identity),
    r"blocks\.(\d+)\.norm2\.bias": ((f"{_HF_LAYER}layernorm_after.bias",), identity),
    r"blocks\.(\d+)\.mlp\.fc1\.kernel": ((f"{_HF_LAYER}intermediate.dense.weight",), to_linear),
    r"blocks\.(\d+)\.mlp\.fc1\.bias": ((f"{_HF_LAYER}intermediate.dense.bias",), identity),
    r"blocks\.(\d+)\.mlp\.fc2\.kernel": ((f"{_HF_LAYER}output.dense.weight",), to_linear),
    r"blocks\.(\d+)\.mlp\.fc2\.bias": ((f"{_HF_LAYER}output.dense.bias",), identity),
}
_HF_DINOV2_BLOCK: Rules = {
    r"blocks\.(\d+)\.(norm[12])\.scale": ((rf"{_HF_LAYER}\2.weight",), identity),
    r"blocks\.(\d+)\.(norm[12])\.bias": ((rf"{_HF_LAYER}\2.bias",), identity),
    r"blocks\.(\d+)\.ls([12])": ((rf"{_HF_LAYER}layer_scale\2.lambda1",), identity),
    r"blocks\.(\d+)\.mlp\.(fc[12])\.kernel": ((rf"{_HF_LAYER}mlp.\2.weight",), to_linear),
    r"blocks\.(\d+)\.mlp\.(fc[12])\.bias": ((rf"{_HF_LAYER}mlp.\2.bias",), identity),
}
_HF_NAMES = {
    # Models that are tuned further have the network inside.
    r"^(?:\w+\.)*(?=(?:embeddings|encoder\.layer|layernorm)\.)": "",
    r"\.weights_in\.": ".fc1.",
    r"\.weights_out\.": ".fc2.",
}
_HF_IGNORED = (r"embeddings\.mask_token", r"pooler\..*", r"classifier\..*")

# The order counts: a checkpoint has the first layout whose signature one of its keys matches.
_LAYOUTS = (
    Layout(
        "transformers' DINOv2 with registers",
        r"embeddings\.register_tokens",
        _hf_rules("attention.attention", _HF_DINOV2_BLOCK, _HF_REGISTER_TOKENS),
        _HF_IGNORED,
        _HF_NAMES,
    ),
    Layout(
        "transformers' DINOv2",
        r"encoder\.layer\.0\.layer_scale1\.lambda1",
        _hf_rules("attention.attention", _HF_DINOV2_BLOCK, _HF_TOKENS),
        _HF_IGNORED,
        _HF_NAMES,
    ),
    Layout(
        "transformers' ViT",
        r"encoder\.layer\.0\.layernorm_before\.weight",
        _hf_rules("attention.attention", _HF_VIT_BLOCK, _HF_TOKENS),
        _HF_IGNORED,
        _HF_NAMES,
    ),
    Layout(
        "CONCH's first version",
        r"attn_pool_contrast\.attn\.in_proj_bias",
        {**_TIMM_BLOCK, **_TIMM_ENDS, **_TOKENS, **_POOL_OF_CONCH_V1},
        (
            *(r"attn_pool_caption\..*", r"ln_caption\..*", r"proj_contrast"),
            *(r"text\..*", r"text_decoder\..*", r"logit_scale"),
        ),
        {r"^(?:visual\.)?(?:trunk\.)?": ""},
    ),
    Layout(
        "KEEP's vision tower",
        r"visual_head\.0\.weight",
        {**_TIMM_BLOCK, **_TIMM_ENDS, **_TOKENS},
        (r"visual_head\..*", r"text\..*", r"logit_scale"),
        {r"^visual\.": "", r"\.(ls[12])\.weight$": r".\1.gamma"},
    ),
    Layout(
        "PathoDuet",
        r"pretext_token",
        {
            **_TIMM_BLOCK,
            **_TIMM_ENDS,
            "cls_token": (("cls_token",), _drop_batch),
            "reg_token": (("pretext_token",), _drop_batch),
            "pos_embed": (("pos_embed",), _swap_first_positions),
        },
        _HEADS,
        # A network that averages its patches calls the last norm so.
        {r"^(?:module\.)?(?:base_encoder\.)?": "", r"^fc_norm\.": "norm."},
    ),
    Layout(
        "CONCH's vision tower",
        r"attn_pool_contrast\.query",
        {**_TIMM_BLOCK, **_TIMM_ENDS, **_TOKENS, **_POOL},
        (),
        {r"^(?:visual\.)?trunk\.": ""},
    ),
    Layout(
        "DINOv2's own, with registers",
        r"register_tokens",
        {**_TIMM_BLOCK, **_TIMM_ENDS, **_DINOV2_REGISTER_TOKENS},
        (*_HEADS, r"mask_token"),
        _NATIVE_NAMES,
    ),
    Layout(
        "timm's or DINOv2's own",
        r"blocks\.0\.norm1\.weight",
        {**_TIMM_BLOCK, **_TIMM_ENDS, **_TOKENS},
        (*_HEADS, r"mask_token"),
        _NATIVE_NAMES,
    ),
)


def list_layouts(config: ViTConfig) -> tuple[Layout, ...]:
    """List the layouts that are known for a configuration."""
    return _LAYOUTS if config.rotary is None else _list_rotary_layouts(config)


def _list_rotary_layouts(config: ViTConfig) -> tuple[Layout, ...]:
    is_gated = config.mlp == "swiglu"
    plain = {**_TIMM_BLOCK, **_TIMM_ENDS, **_TOKENS}
    return (
        Layout(
            "timm's DINOv3",
            r"blocks\.0\.gamma_1",
            {**_EVA_BLOCK, **(_split_gate("fc1_g", "fc1_x", "fc2") if is_gated else {}), **plain},
        ),
        Layout(
            "DINOv3's own",
            r"blocks\.0\.norm1\.weight",
            {**(_split_gate("w1", "w2", "w3") if is_gated else {}), **plain},
            # The periods follow from the configuration.
            (*_HEADS, r"mask_token", r"rope_embed\.periods"),
            {r"^(?:model|backbone)\.": "", r"^storage_tokens$": "reg_token"},
        ),
    )


def is_position_embedding(key: str) -> bool:
    """Whether a publisher's key is the (1, entries, channels) position embedding."""
    return key.endswith(("pos_embed", "embeddings.position_embeddings"))
