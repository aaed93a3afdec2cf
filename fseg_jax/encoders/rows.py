"""What a row of the catalog says of a published encoder, and rows that follow from a network's
configuration.
"""

from dataclasses import dataclass
from typing import Any, Literal

from fseg_jax.encoders.architectures import Config
from fseg_jax.encoders.resnet.network import RESNETS
from fseg_jax.encoders.vit.network import ViTConfig

RGB = tuple[float, float, float]

IMAGENET: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: tuple[RGB, RGB] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Row:
    """One published encoder.

    - ``files``: what to fetch, tried in order; from the hub's ``repo``, or, where ``url`` is given, from
      there;
    - ``layer``: what F-SEG reads, ``stride`` pixels a token of ``channels`` channels, ``prefix`` tokens
      dropped;
    - ``input_size``: the side of the images it was published for, cut from ones whose short side was resized
      to ``resize`` with ``resampling``; ``mean`` and ``std`` are of RGB in 0 … 1;
    - ``mpp``: micrometres a pixel that it was trained at; None where that is not known, or not of tissue;
    - ``parameters``: of the published network without what is left aside (classifiers, mask tokens). Ours has
      one number a channel less for each batch norm folded into its convolution (ResNet, Swin), and one
      embedding less where the class token's position is added to it (Hibou);
    - ``page``: where the licence is, and where access to a gated one is asked for.
    """

    name: str
    title: str
    config: Config
    repo: str
    files: tuple[str, ...]
    layer: str
    stride: int
    channels: int
    mean: RGB
    std: RGB
    licence: str
    citation: str
    page: str
    parameters: int
    prefix: int = 0
    input_size: int = 224
    resize: int = 224
    resampling: Literal["bilinear", "bicubic"] = "bilinear"
    mpp: tuple[float, ...] | None = None
    gated: bool = False
    url: str | None = None
    repo_type: Literal["model", "dataset"] = "model"


def hub(repo: str) -> str:
    return f"https://huggingface.co/{repo}"


def vit_row(
    name: str, title: str, config: ViTConfig, repo: str, *files: str, page: str | None = None, **rest: Any
) -> Row:
    """A ViT's row: the layer, stride, channels and prefix follow from the configuration."""
    return Row(
        name=name,
        title=title,
        config=config,
        repo=repo,
        files=files or ("model.safetensors",),
        layer=f"blocks.{config.depth - 1}",
        stride=config.patch,
        channels=config.dim,
        prefix=config.prefix,
        page=page or hub(repo),
        **rest,
    )


HE = "He et al., Deep residual learning for image recognition, CVPR 2016, arXiv:1512.03385"


def resnet_row(name: str, title: str, repo: str, depth: int, **rest: Any) -> Row:
    """A ResNet's row, read at layer3."""
    config = RESNETS[f"resnet{depth}"]
    defaults: dict[str, Any] = {"files": ("model.safetensors",), "page": hub(repo), "citation": HE}
    return Row(
        name=name,
        title=title,
        config=config,
        repo=repo,
        layer="layer3",
        stride=16,
        channels=config.channels[2] * config.expansion,
        parameters=_RESNET_PARAMETERS[depth],
        **{**defaults, **rest},
    )


_RESNET_PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160}


def normalised(statistics: tuple[RGB, RGB]) -> dict[str, Any]:
    return {"mean": statistics[0], "std": statistics[1]}


# Of ViTs.
TINY: dict[str, Any] = {"dim": 192, "depth": 12, "heads": 3, "mlp_width": 768}
SMALL: dict[str, Any] = {"dim": 384, "depth": 12, "heads": 6, "mlp_width": 1536}
BASE: dict[str, Any] = {"dim": 768, "depth": 12, "heads": 12, "mlp_width": 3072}
LARGE: dict[str, Any] = {"dim": 1024, "depth": 24, "heads": 16, "mlp_width": 4096}
HUGE: dict[str, Any] = {"dim": 1280, "depth": 32, "heads": 16, "mlp_width": 5120}
GIANT: dict[str, Any] = {"dim": 1408, "depth": 40, "heads": 16, "mlp_width": 6144}
GIGANTIC: dict[str, Any] = {"dim": 1664, "depth": 48, "heads": 16, "mlp_width": 8192}
DINOV2_GIANT: dict[str, Any] = {
    "dim": 1536,
    "depth": 40,
    "heads": 24,
    "mlp_width": 8192,
    "mlp": "swiglu",
    "layer_scale": True,
}
REGISTERS: dict[str, Any] = {"registers": 4, "embed_prefix": False, "layer_scale": True}
