"""From a name to a row: names of the catalog, and ``timm:NAME`` for ViTs and ResNets of timm."""

import re
from dataclasses import replace

from fseg_jax.encoders.catalog.published import CATALOG
from fseg_jax.encoders.catalog.row import HALF, IMAGENET, Normalisation, Row, resnet_row, vit_row
from fseg_jax.encoders.catalog.unsupported import UNSUPPORTED
from fseg_jax.encoders.resnet.network import RESNETS
from fseg_jax.encoders.vit.network import DINOV2_GIANT, DINOV3, VITS, ViTConfig, add_registers
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import suggest_names

# The tag after the dot says how a network was trained. Images of Google's own training are in −1 … 1.
_HALF_TAGS = ("augreg", "orig", "sam", "ra4")
_IMAGENET_TAGS = ("dino", "mae", "lvd142m")
_NON_COMMERCIAL_TAGS = ("mae", "fb_")
_DINOV3_TAGS = ("lvd1689m", "sat493m")
_SATELLITE = Normalisation((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))

_DOSOVITSKIY = "Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021, arXiv:2010.11929"
_SIMEONI = "Siméoni et al., DINOv3, 2025, arXiv:2508.10104"


# What TRIDENT, LazySlide, slide2vec and raw2features call encoders of the catalog.
OTHER_NAMES = {
    "gigapath": "prov-gigapath",
    "kaiko-midnight": "midnight-12k",
    **{f"kaiko-vit{size}": f"kaiko-{size}" for size in ("s8", "s16", "b8", "b16", "l14")},
    "kaiko-vitl": "kaiko-l14",
    "lunit-bt": "lunit-resnet50",
    **{f"lunit-{how}": f"lunit-resnet50-{how}" for how in ("mocov2", "swav")},
    **{name: "lunit-s16" for name in ("lunit-dino", "lunit-dino-s16", "lunit-vits16")},
    **{name: "lunit-s8" for name in ("lunit-dino8", "lunit-dino-s8", "lunit-vits8")},
    "prov-gigapath-flash": "gigapath-flash",
    "uni-v1": "uni",
    **{name: "uni2-h" for name in ("uni2", "uni-v2")},
}
_LIKENESS = 0.8  # of a name to one that was mistyped, at least


def find_row(name: str) -> Row:
    """Find the row of a name in the catalog, or make that of ``timm:NAME``.

    Case, hyphens, underscores and dots do not matter, and other programs' names for an encoder are known.

    Raises:
        InputError: the name is neither. The message says what it is, where that is known, or has similar
            names.

    >>> find_row("UNI2_h").title
    'UNI2-h'
    >>> find_row("timm:resnet34.a1_in1k").channels
    256
    """
    if name.startswith("timm:"):
        return _timm_row(name)
    key = _squeeze(name)
    for known in CATALOG:
        if _squeeze(known) == key:
            return CATALOG[known]
    for other, known in OTHER_NAMES.items():
        if _squeeze(other) == key:
            return CATALOG[known]
    for other, what in UNSUPPORTED.items():
        if _squeeze(other) == key:
            raise InputError(
                f"{name} is {what.what}, which the catalog lacks: {what.why}. Near it: {what.near}"
            )
    # Another number is another model: virchow3 is not virchow2 mistyped.
    number = _digits(name)
    similar = [other for other in ("he-small", "classical", *CATALOG) if _digits(other).startswith(number)]
    raise InputError(
        f"no encoder is called {name!r}: {suggest_names(name, similar, likeness=_LIKENESS)}"
        "`fseg encoders` lists them, and timm:NAME works too"
    )


def _squeeze(name: str) -> str:
    return re.sub("[-_.]", "", name.lower())


def _digits(name: str) -> str:
    return "".join(filter(str.isdigit, name))


def _timm_row(name: str) -> Row:
    """Make the row of ``timm:ARCHITECTURE.TAG``.

    InputError where that is no plain ViT or ResNet with a known tag.
    """
    architecture, _, tag = name.removeprefix("timm:").partition(".")
    repo = f"timm/{architecture}.{tag}"
    licence = "CC-BY-NC-4.0" if tag.startswith(_NON_COMMERCIAL_TAGS) else "Apache-2.0"
    normalisation = HALF if tag.startswith(_HALF_TAGS) else IMAGENET
    if tag.startswith("sat493m"):
        normalisation = _SATELLITE
    if tag and architecture in RESNETS:
        return resnet_row(
            name,
            f"{architecture} ({tag})",
            repo,
            int(architecture.removeprefix("resnet")),
            licence="BSD-3-Clause" if tag.startswith("tv") else licence,
            resampling="bilinear" if tag.startswith(("tv", "fb_")) else "bicubic",
            normalisation=normalisation,
        )
    config = _timm_vit(architecture)
    is_dinov3 = config is not None and config.rotary is not None
    if config is None or not tag.startswith(_DINOV3_TAGS if is_dinov3 else (*_HALF_TAGS, *_IMAGENET_TAGS)):
        raise InputError(
            f"{name}: give a plain ViT or ResNet of timm with its tag, such as "
            f"timm:vit_small_patch16_224.augreg_in21k, "
            "timm:vit_base_patch14_dinov2.lvd142m, timm:vit_base_patch16_dinov3.lvd1689m or "
            "timm:resnet34.a1_in1k"
        )
    return vit_row(
        name,
        f"{architecture} ({tag})",
        config,
        repo,
        licence="DINOv3 License" if is_dinov3 else licence,
        citation=_SIMEONI if is_dinov3 else _DOSOVITSKIY,
        input_size=config.image_size,
        resize=config.image_size,
        resampling="bicubic",
        parameters=_count_vit_parameters(config),
        normalisation=normalisation,
    )


def _timm_vit(architecture: str) -> ViTConfig | None:
    if match := re.fullmatch(r"vit_(\w+?)_patch16_dinov3(_qkvb)?", architecture):
        config = DINOV3.get(match[1])
        return config and replace(config, qkv_bias=bool(match[2]))
    if match := re.fullmatch(r"vit_(small|base|large|giant)_patch14(_reg4)?_dinov2", architecture):
        size = DINOV2_GIANT if match[1] == "giant" else VITS[match[1]]
        config = replace(size, patch=14, image_size=518, layer_scale=True)
        return add_registers(config) if match[2] else config
    if match := re.fullmatch(rf"vit_({'|'.join(VITS)})_patch(8|14|16|32)_(\d+)", architecture):
        return replace(VITS[match[1]], patch=int(match[2]), image_size=int(match[3]))
    return None


def _count_vit_parameters(config: ViTConfig) -> int:
    """Count the numbers that a plain ViT holds."""
    dim, positions = config.dim, config.positions[0] ** 2 + config.prefix * config.embed_prefix
    bias = 3 * dim * config.qkv_bias
    if config.rotary is not None:  # DINOv3 has no bias of k
        positions, bias = 0, 2 * dim * config.qkv_bias
    hidden = config.mlp_width // (2 if config.mlp == "swiglu" else 1)
    mlp = (dim + 1) * config.mlp_width + (hidden + 1) * dim
    block = 4 * dim**2 + dim + bias + mlp + 4 * dim + 2 * dim * config.layer_scale
    return (3 * config.patch**2 + 1 + config.prefix + positions + 2) * dim + config.depth * block
