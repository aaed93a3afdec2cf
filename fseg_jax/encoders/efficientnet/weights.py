"""The names of an EfficientNet's tensors in checkpoints: timm's and lukemelas's.

timm numbers blocks within stages, lukemelas numbers them throughout.
"""

from fseg_jax.encoders.efficientnet.network import EfficientNetConfig
from fseg_jax.encoders.weight_rules import Layout, Rule, Rules, identity, to_conv, to_linear, to_pointwise

# For each of our layers, the publisher's convolution and norm.
_TIMM_BLOCK = {
    "expand": ("conv_pw", "bn1"),
    "depthwise": ("conv_dw", "bn2"),
    "project": ("conv_pwl", "bn3"),
}
_TIMM_BLOCK_WITHOUT_EXPANSION = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
_TIMM_ENDS = {"stem": ("conv_stem", "bn1"), "top": ("conv_head", "bn2")}

_LUKEMELAS_BLOCK = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}
_LUKEMELAS_ENDS = {"stem": ("_conv_stem", "_bn0"), "top": ("_conv_head", "_bn1")}

_COUNTERS = r".*\.num_batches_tracked"


def list_layouts(config: EfficientNetConfig) -> tuple[Layout, ...]:
    """List the layouts that are known for a configuration.

    The classifier is ignored where the network has none.
    """
    return (_timm(config), _lukemelas(config))


def _timm(config: EfficientNetConfig) -> Layout:
    flat, rules, index = {}, _ends(_TIMM_ENDS, "classifier"), 0
    for stage, (repeats, (_, _, _, expansion, _)) in enumerate(
        zip(config.repeats(), config.stages, strict=True)
    ):
        parts = _TIMM_BLOCK if expansion > 1 else _TIMM_BLOCK_WITHOUT_EXPANSION
        for position in range(repeats):
            flat[rf"^blocks\.{stage}\.{position}\."] = f"block.{index}."
            rules |= _block(index, parts, f"block.{index}.", "se.conv_")
            index += 1
    return Layout(
        "timm's EfficientNet", r"conv_stem\.weight", rules, (_COUNTERS, *_unused(config, "classifier")), flat
    )


def _lukemelas(config: EfficientNetConfig) -> Layout:
    rules = _ends(_LUKEMELAS_ENDS, "_fc")
    for index, _ in enumerate(config.blocks()):
        rules |= _block(index, _LUKEMELAS_BLOCK, f"_blocks.{index}.", "_se_")
    return Layout(
        "lukemelas's EfficientNet", r"_conv_stem\.weight", rules, (_COUNTERS, *_unused(config, "_fc"))
    )


def _unused(config: EfficientNetConfig, classifier: str) -> tuple[str, ...]:
    return () if config.num_classes else (rf"{classifier}\..*",)


def _ends(parts: dict[str, tuple[str, str]], classifier: str) -> dict[str, Rule]:
    rules: dict[str, Rule] = {
        r"classifier\.kernel": ((f"{classifier}.weight",), to_linear),
        r"classifier\.bias": ((f"{classifier}.bias",), identity),
    }
    for layer, (convolution, norm) in parts.items():
        rules |= _conv_norm(layer, convolution, norm)
    return rules


def _block(index: int, parts: dict[str, tuple[str, str]], prefix: str, squeeze: str) -> Rules:
    block = rf"blocks\.{index}\."
    rules: dict[str, Rule] = {
        block + r"se\.(reduce|expand)\.kernel": ((rf"{prefix}{squeeze}\1.weight",), to_pointwise),
        block + r"se\.(reduce|expand)\.bias": ((rf"{prefix}{squeeze}\1.bias",), identity),
    }
    for part, (convolution, norm) in parts.items():
        rules |= _conv_norm(block + part, prefix + convolution, prefix + norm)
    return rules


def _conv_norm(layer: str, convolution: str, norm: str) -> Rules:
    return {
        layer + r"\.conv\.kernel": ((f"{convolution}.weight",), to_conv),
        layer + r"\.norm\.scale": ((f"{norm}.weight",), identity),
        layer + r"\.norm\.bias": ((f"{norm}.bias",), identity),
        layer + r"\.norm\.mean": ((f"{norm}.running_mean",), identity),
        layer + r"\.norm\.var": ((f"{norm}.running_var",), identity),
    }
