"""Rows for ``timm:NAME``: the plain ViTs and ResNets that timm publishes, from what their names say."""

import re

from fseg_jax.encoders.resnet.network import RESNETS
from fseg_jax.encoders.rows import (
    BASE,
    DINOV2_GIANT,
    GIANT,
    GIGANTIC,
    HALF,
    HUGE,
    IMAGENET,
    LARGE,
    REGISTERS,
    SMALL,
    TINY,
    Row,
    normalised,
    resnet_row,
    vit_row,
)
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.errors import InputError

_TIMM_VITS = {
    "tiny": TINY,
    "small": SMALL,
    "base": BASE,
    "large": LARGE,
    "huge": HUGE,
    "giant": GIANT,
    "gigantic": GIGANTIC,
}
# What the tag after the dot says of the images: those of Google's own training are in −1 … 1.
_HALF_TAGS = ("augreg", "orig", "sam", "ra4")
_IMAGENET_TAGS = ("dino", "mae", "lvd142m")
_NON_COMMERCIAL_TAGS = ("mae", "fb_")


def timm_row(name: str) -> Row:
    """The row of ``timm:ARCHITECTURE.TAG``; InputError for one that is not a plain ViT or ResNet with a known
    tag.
    """
    architecture, _, tag = name.removeprefix("timm:").partition(".")
    repo = f"timm/{architecture}.{tag}"
    licence = "CC-BY-NC-4.0" if tag.startswith(_NON_COMMERCIAL_TAGS) else "Apache-2.0"
    if tag and architecture in RESNETS:
        return resnet_row(
            name,
            f"{architecture} ({tag})",
            repo,
            int(architecture.removeprefix("resnet")),
            licence="BSD-3-Clause" if tag.startswith("tv") else licence,
            resampling="bilinear" if tag.startswith(("tv", "fb_")) else "bicubic",
            **normalised(HALF if tag.startswith(_HALF_TAGS) else IMAGENET),
        )
    config = _timm_vit(architecture)
    if config is None or not tag.startswith((*_HALF_TAGS, *_IMAGENET_TAGS)):
        raise InputError(
            f"{name}: give a plain ViT or ResNet of timm with its tag, such as "
            f"timm:vit_small_patch16_224.augreg_in21k, "
            "timm:vit_base_patch14_dinov2.lvd142m or timm:resnet34.a1_in1k"
        )
    return vit_row(
        name,
        f"{architecture} ({tag})",
        config,
        repo,
        licence=licence,
        citation="Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021, arXiv:2010.11929",
        input_size=config.image_size,
        resize=config.image_size,
        resampling="bicubic",
        parameters=_vit_parameters(config),
        **normalised(HALF if tag.startswith(_HALF_TAGS) else IMAGENET),
    )


def _timm_vit(architecture: str) -> ViTConfig | None:
    if match := re.fullmatch(r"vit_(small|base|large|giant)_patch14(_reg4)?_dinov2", architecture):
        arguments = DINOV2_GIANT if match[1] == "giant" else _TIMM_VITS[match[1]]
        registers = REGISTERS if match[2] else {}
        return ViTConfig(patch=14, image_size=518, **{**arguments, "layer_scale": True, **registers})
    if match := re.fullmatch(rf"vit_({'|'.join(_TIMM_VITS)})_patch(8|14|16|32)_(\d+)", architecture):
        return ViTConfig(patch=int(match[2]), image_size=int(match[3]), **_TIMM_VITS[match[1]])
    return None


def _vit_parameters(config: ViTConfig) -> int:
    """How many numbers a plain ViT holds."""
    dim, entries = config.dim, config.positions[0] ** 2 + config.prefix * config.embed_prefix
    hidden = config.mlp_width // (2 if config.mlp == "swiglu" else 1)
    mlp = (dim + 1) * config.mlp_width + (hidden + 1) * dim
    block = 4 * dim * (dim + 1) + mlp + 4 * dim + 2 * dim * config.layer_scale
    return (3 * config.patch**2 + 1 + config.prefix + entries + 2) * dim + config.depth * block
