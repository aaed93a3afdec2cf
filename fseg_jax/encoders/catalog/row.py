"""A row of the catalog, and how a row of each family follows from its network's configuration."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fseg_jax.encoders.architectures import Config
from fseg_jax.encoders.efficientnet.network import EfficientNetConfig
from fseg_jax.encoders.resnet.network import RESNETS
from fseg_jax.encoders.text.network import TextConfig
from fseg_jax.encoders.vit.network import ViTConfig

RGB = tuple[float, float, float]


class Normalisation(NamedTuple):
    """How images are normalised: ``(x − mean) / std``, of RGB in 0 … 1."""

    mean: RGB
    std: RGB


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LITE = Normalisation((127 / 255,) * 3, (128 / 255,) * 3)  # of EfficientNet-Lite

_HE = "He et al., Deep residual learning for image recognition, CVPR 2016, arXiv:1512.03385"
_TAN = "Tan & Le, EfficientNet, ICML 2019, arXiv:1905.11946"

# Parameters by depth, without the classifier.
_RESNET_PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160}


@dataclass(frozen=True)
class TextRow:
    """The text tower that a published model has beside its encoder.

    Attributes:
        config: its configuration.
        parameters: numbers in the published tower, in what brings images to its space, and in the
            temperature. Ours has an embedding a text less where BERT's are added to the positions.
        longest: tokens of a text at most, those that mark its start and end included.
        tokenizer: names of the tokenizer's file, tried in order; from ``tokenizer_url`` where that is given,
            else from the encoder's repository.
        tokenizer_url: the folder to fetch it from, where it is not on the hub.
    """

    config: TextConfig
    parameters: int
    longest: int
    tokenizer: tuple[str, ...]
    tokenizer_url: str | None = None


@dataclass(frozen=True)
class Row:
    """A published encoder: the place of its weights, its network, its images and its terms.

    Attributes:
        name: the name on the command line.
        title: the name in texts.
        config: the network's configuration.
        repo: the hub's repository, or the page's.
        files: file names to fetch, tried in order; from ``url`` or ``package`` where that is given, else from
            ``repo``.
        layer: the layer that F-SEG reads.
        stride: pixels a token at that layer.
        channels: channels of a token at that layer.
        normalisation: mean and standard deviation of the images.
        licence: the licence of the weights.
        citation: the publication to cite.
        page: the page with the licence, where access to a gated encoder is asked for.
        parameters: numbers in the published network, without classifiers and mask tokens. Our network has one
            number a channel less for each batch norm that is folded into its convolution (ResNet, Swin), and
            one embedding less where the class token's position is added to the token (Hibou).
        prefix: class and register tokens before the patches; they are dropped.
        input_size: side in pixels of the images that the encoder was published for.
        resize: short side in pixels that images were resized to before that square was cut from them.
        resampling: how they were resized.
        mpp: µm per pixel that it was trained at; None where that is not known, or not of tissue.
        gated: whether the hub gives the weights only to users who accepted their terms.
        url: the folder to fetch the files from, where they are not on the hub.
        package: the Python package that holds the files, once it is installed.
        repo_type: the kind of the hub's repository.
        text: its text tower, in the same file; None: it has none.
    """

    name: str
    title: str
    config: Config
    repo: str
    files: tuple[str, ...]
    layer: str
    stride: int
    channels: int
    normalisation: Normalisation
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
    package: str | None = None
    repo_type: Literal["model", "dataset"] = "model"
    text: TextRow | None = None


def vit_row(name: str, title: str, config: ViTConfig, repo: str, *files: str, **rest: Any) -> Row:
    """Make a ViT's row, read at the last block: layer, stride, channels and prefix follow from ``config``."""
    return Row(
        name=name,
        title=title,
        config=config,
        repo=repo,
        files=files or ("model.safetensors",),
        layer=f"blocks.{config.depth - 1}",
        stride=config.patch,
        channels=config.channels,
        prefix=config.prefix,
        **{"page": hub_page(repo), **rest},
    )


def resnet_row(name: str, title: str, repo: str, depth: int, **rest: Any) -> Row:
    """Make a ResNet's row, read at layer3."""
    config = RESNETS[f"resnet{depth}"]
    defaults: dict[str, Any] = {"files": ("model.safetensors",), "page": hub_page(repo), "citation": _HE}
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


def efficientnet_row(name: str, title: str, repo: str, config: EfficientNetConfig, **rest: Any) -> Row:
    """Make an EfficientNet's row, read at the last block with 16 pixels a token."""
    blocks = config.blocks()
    strides = [index for index, block in enumerate(blocks) if block.stride == 2]
    block = strides[-1] - 1
    defaults: dict[str, Any] = {"files": ("model.safetensors",), "page": hub_page(repo), "citation": _TAN}
    return Row(
        name=name,
        title=title,
        config=config,
        repo=repo,
        layer=f"blocks.{block}",
        stride=16,
        channels=blocks[block].channels_out,
        **{**defaults, **rest},
    )


def hub_page(repo: str) -> str:
    """Build the address of a model's page on the Hugging Face hub."""
    return f"https://huggingface.co/{repo}"
