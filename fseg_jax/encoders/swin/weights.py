"""The names of a Swin's tensors in checkpoints: timm's, and CTransPath's.

CTransPath used a patched timm 0.5.4, which halves the grid at the end of a stage.
"""

from fseg_jax.encoders.swin.network import SwinConfig
from fseg_jax.encoders.weight_rules import (
    Layout,
    Rules,
    fold_bias,
    fold_kernel,
    identity,
    to_conv,
    to_linear,
)

BATCH_NORM_EPS = 1e-5

_BLOCK = r"trunk\.(\d+)\.blocks\.(\d+)\."
_SOURCE = r"layers.\1.blocks.\2."


def _stem(name: str, convolution: int, norm: int) -> Rules:
    """Make the rules of a convolution in the stem's sequence, with the batch norm after it folded."""
    bn = f"patch_embed.proj.{norm}"
    return {
        rf"patch_embed\.{name}\.kernel": (
            (f"patch_embed.proj.{convolution}.weight", f"{bn}.weight", f"{bn}.running_var"),
            fold_kernel(BATCH_NORM_EPS),
        ),
        rf"patch_embed\.{name}\.bias": (
            (f"{bn}.weight", f"{bn}.running_var", f"{bn}.bias", f"{bn}.running_mean"),
            fold_bias(BATCH_NORM_EPS),
        ),
    }


_RULES: Rules = {
    **_stem("conv1", 0, 1),
    **_stem("conv2", 3, 4),
    r"patch_embed\.conv3\.kernel": ((r"patch_embed.proj.6.weight",), to_conv),
    r"patch_embed\.conv3\.bias": ((r"patch_embed.proj.6.bias",), identity),
    r"patch_embed\.norm\.scale": ((r"patch_embed.norm.weight",), identity),
    r"patch_embed\.norm\.bias": ((r"patch_embed.norm.bias",), identity),
    rf"{_BLOCK}(norm[12])\.scale": ((rf"{_SOURCE}\3.weight",), identity),
    rf"{_BLOCK}(norm[12])\.bias": ((rf"{_SOURCE}\3.bias",), identity),
    rf"{_BLOCK}(attn\.(?:qkv|proj))\.kernel": ((rf"{_SOURCE}\3.weight",), to_linear),
    rf"{_BLOCK}(attn\.(?:qkv|proj))\.bias": ((rf"{_SOURCE}\3.bias",), identity),
    rf"{_BLOCK}attn\.relative_position_bias_table": (
        (rf"{_SOURCE}attn.relative_position_bias_table",),
        identity,
    ),
    rf"{_BLOCK}(fc[12])\.kernel": ((rf"{_SOURCE}mlp.\3.weight",), to_linear),
    rf"{_BLOCK}(fc[12])\.bias": ((rf"{_SOURCE}mlp.\3.bias",), identity),
    r"trunk\.(\d+)\.downsample\.reduction\.kernel": ((r"layers.\1.downsample.reduction.weight",), to_linear),
    r"trunk\.(\d+)\.downsample\.norm\.scale": ((r"layers.\1.downsample.norm.weight",), identity),
    r"trunk\.(\d+)\.downsample\.norm\.bias": ((r"layers.\1.downsample.norm.bias",), identity),
    r"norm\.scale": ((r"norm.weight",), identity),
    r"norm\.bias": ((r"norm.bias",), identity),
}
# Tables that follow from the window's size, counters, classifiers.
_IGNORED = (r".*\.relative_position_index", r".*\.attn_mask", r".*\.num_batches_tracked", r"head\..*")


def list_layouts(config: SwinConfig) -> tuple[Layout, ...]:
    """List the layouts that are known for a configuration.

    timm's has a ``downsample`` in the last stage, CTransPath's in the first.
    """
    # From the last stage down: the other way, a renamed key would be renamed again.
    last = len(config.depths) - 1
    stages = reversed(range(last))
    to_next = {rf"^layers\.{n}\.downsample\.": f"layers.{n + 1}.downsample." for n in stages}
    return (
        Layout("timm's Swin", rf"layers\.{last}\.downsample\.reduction\.weight", _RULES, _IGNORED),
        Layout(
            "CTransPath's Swin", rf"layers\.{last}\.downsample\.reduction\.weight", _RULES, _IGNORED, to_next
        ),
    )
