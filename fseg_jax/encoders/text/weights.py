"""The names of a text tower's tensors in the checkpoints of KEEP and CONCH."""

import numpy as np

from fseg_jax.encoders.text.network import TextConfig
from fseg_jax.encoders.weight_rules import Layout, Rules, identity, join_linear, to_linear


def _add_first_type(positions: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Add to the positions the embedding of the first of two texts, which a prompt is."""
    return positions.astype(np.float32) + types[:1].astype(np.float32)


def _to_vector(value: np.ndarray) -> np.ndarray:
    return value.reshape(1)


def _name_linear(ours: str, theirs: str) -> Rules:
    return {
        rf"{ours}\.kernel": ((f"{theirs}.weight",), to_linear),
        rf"{ours}\.bias": ((f"{theirs}.bias",), identity),
    }


def _name_norm(ours: str, theirs: str) -> Rules:
    return {
        rf"{ours}\.scale": ((f"{theirs}.weight",), identity),
        rf"{ours}\.bias": ((f"{theirs}.bias",), identity),
    }


_SCALE: Rules = {"logit_scale": (("logit_scale",), _to_vector)}

_LAYER = r"text.encoder.layer.\1."
_QKV = tuple(f"{_LAYER}attention.self.{part}" for part in ("query", "key", "value"))
_BERT: Rules = {
    "token_embed": (("text.embeddings.word_embeddings.weight",), identity),
    "pos_embed": (
        ("text.embeddings.position_embeddings.weight", "text.embeddings.token_type_embeddings.weight"),
        _add_first_type,
    ),
    r"blocks\.(\d+)\.qkv\.kernel": (tuple(f"{part}.weight" for part in _QKV), join_linear),
    r"blocks\.(\d+)\.qkv\.bias": (tuple(f"{part}.bias" for part in _QKV), join_linear),
    **_name_norm("norm", "text.embeddings.LayerNorm"),
    **_name_linear(r"blocks\.(\d+)\.proj", f"{_LAYER}attention.output.dense"),
    **_name_norm(r"blocks\.(\d+)\.norm1", f"{_LAYER}attention.output.LayerNorm"),
    **_name_linear(r"blocks\.(\d+)\.fc1", f"{_LAYER}intermediate.dense"),
    **_name_linear(r"blocks\.(\d+)\.fc2", f"{_LAYER}output.dense"),
    **_name_norm(r"blocks\.(\d+)\.norm2", f"{_LAYER}output.LayerNorm"),
    **_name_linear("out", "text.pooler.dense"),
    **_name_linear("image_fc1", "visual_head.0"),
    **_name_linear("image_out", "visual_head.2"),
    **_SCALE,
}

_RESBLOCK = r"text.transformer.resblocks.\1."
_COCA: Rules = {
    "token_embed": (("text.token_embedding.weight",), identity),
    "pos_embed": (("text.positional_embedding",), identity),
    "class_token": (("text.cls_emb",), identity),
    r"blocks\.(\d+)\.qkv\.kernel": ((f"{_RESBLOCK}attn.in_proj_weight",), to_linear),
    r"blocks\.(\d+)\.qkv\.bias": ((f"{_RESBLOCK}attn.in_proj_bias",), identity),
    **_name_norm(r"blocks\.(\d+)\.norm1", f"{_RESBLOCK}ln_1"),
    **_name_linear(r"blocks\.(\d+)\.proj", f"{_RESBLOCK}attn.out_proj"),
    **_name_norm(r"blocks\.(\d+)\.norm2", f"{_RESBLOCK}ln_2"),
    **_name_linear(r"blocks\.(\d+)\.fc1", f"{_RESBLOCK}mlp.c_fc"),
    **_name_linear(r"blocks\.(\d+)\.fc2", f"{_RESBLOCK}mlp.c_proj"),
    **_name_norm("norm", "text.ln_final"),
    # These two are published as (in, out) already.
    r"out\.kernel": (("text.text_projection",), identity),
    r"image_out\.kernel": (("visual.proj_contrast",), identity),
    **_SCALE,
}


_KEEP = Layout(
    "KEEP",
    r"text\.embeddings\.word_embeddings\.weight",
    _BERT,
    (r"visual\..*", r"text\.embeddings\.position_ids"),
)
_CONCH = Layout(
    "CONCH's first version",
    r"text\.token_embedding\.weight",
    _COCA,
    (r"visual\.(?!proj_contrast$).*", r"text_decoder\..*", r"text\.attn_mask"),
    {r"^module\.": ""},
)


def list_layouts(config: TextConfig) -> tuple[Layout, ...]:
    """List the layout of a configuration's checkpoints, which hold the vision tower too."""
    return (_KEEP,) if config.kind == "bert" else (_CONCH,)
