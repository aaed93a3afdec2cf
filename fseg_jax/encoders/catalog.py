"""The published encoders, a row each: where the weights are, what network they fill, how they want their images.

Data only. ``lookup`` finds a row by name, or makes one for ``timm:NAME``, any plain ViT or ResNet that timm publishes.
The rows say what was published; ``architectures.abstract(row.config)`` builds the network.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from fseg_jax.encoders.architectures import Config
from fseg_jax.encoders.efficientnet import efficientnet
from fseg_jax.encoders.resnet import RESNETS
from fseg_jax.encoders.swin import SwinConfig
from fseg_jax.encoders.vit import AttentionPoolConfig, ViTConfig
from fseg_jax.errors import InputError

RGB = tuple[float, float, float]

IMAGENET: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: tuple[RGB, RGB] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LUNIT: tuple[RGB, RGB] = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
BIOPTIMUS: tuple[RGB, RGB] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU: tuple[RGB, RGB] = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))

ALL_MAGNIFICATIONS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Row:
    """One published encoder.

    - ``files``: what to fetch, tried in order; from the hub's ``repo``, or, where ``url`` is given, from there;
    - ``layer``: what F-SEG reads, ``stride`` pixels a token of ``channels`` channels, ``prefix`` tokens dropped;
    - ``input_size``: the side of the images it was published for, cut from ones whose short side was resized to
      ``resize`` with ``resampling``; ``mean`` and ``std`` are of RGB in 0 … 1;
    - ``mpp``: micrometres a pixel that it was trained at; None where that is not known, or not of tissue;
    - ``parameters``: of the published network without what is left aside (classifiers, mask tokens). A folded batch
      norm leaves one number a channel less in ours;
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


def lookup(name: str) -> Row:
    """The row of an encoder by its name in the catalog, or of ``timm:NAME``.

    InputError for a name that is neither, with the nearest ones.
    """
    if name.startswith("timm:"):
        return _timm(name)
    key = name.lower().replace("_", "-")
    if key in CATALOG:
        return CATALOG[key]
    near = difflib.get_close_matches(key, CATALOG, n=3, cutoff=0.4) or [
        known for known in CATALOG if key in known or known in key
    ]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(f"no encoder is called {name!r}: {hint}`fseg encoders` lists them, and timm:NAME works too")


def _hub(repo: str) -> str:
    return f"https://huggingface.co/{repo}"


def _vit(name: str, title: str, config: ViTConfig, repo: str, *files: str, page: str | None = None, **rest) -> Row:
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
        page=page or _hub(repo),
        **rest,
    )


def _resnet(name: str, title: str, repo: str, depth: int, **rest) -> Row:
    """A ResNet's row, read at layer3."""
    config = RESNETS[f"resnet{depth}"]
    defaults = {"files": ("model.safetensors",), "page": _hub(repo), "citation": _HE}
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

_TINY = {"dim": 192, "depth": 12, "heads": 3, "mlp_width": 768}
_SMALL = {"dim": 384, "depth": 12, "heads": 6, "mlp_width": 1536}
_BASE = {"dim": 768, "depth": 12, "heads": 12, "mlp_width": 3072}
_LARGE = {"dim": 1024, "depth": 24, "heads": 16, "mlp_width": 4096}
_HUGE = {"dim": 1280, "depth": 32, "heads": 16, "mlp_width": 5120}
_GIANT = {"dim": 1408, "depth": 40, "heads": 16, "mlp_width": 6144}
_GIGANTIC = {"dim": 1664, "depth": 48, "heads": 16, "mlp_width": 8192}
_DINOV2_GIANT = {"dim": 1536, "depth": 40, "heads": 24, "mlp_width": 8192, "mlp": "swiglu", "layer_scale": True}
_REGISTERS = {"registers": 4, "embed_prefix": False, "layer_scale": True}
_VIRCHOW = {**_HUGE, "mlp_width": 6832, "mlp": "swiglu", "layer_scale": True}

_HE = "He et al., Deep residual learning for image recognition, CVPR 2016, arXiv:1512.03385"
_WIGHTMAN = "Wightman et al., ResNet strikes back, 2021, arXiv:2110.00476"
_TAN = "Tan & Le, EfficientNet, ICML 2019, arXiv:1905.11946"
_UNI = "Chen et al., Towards a general-purpose foundation model for computational pathology, Nature Medicine 2024"
_KAIKO = "kaiko.ai et al., Towards large-scale training of pathology foundation models, 2024, arXiv:2404.15217"
_LUNIT = "Kang et al., Benchmarking self-supervised learning on diverse pathology datasets, CVPR 2023, arXiv:2212.04690"
_HIBOU = "Nechaev et al., Hibou: a family of foundational vision transformers for pathology, 2024, arXiv:2406.05074"

_KAIKO_LICENCE = "Kaiko Non-Commercial Public License v1"
_LUNIT_LICENCE = "Lunit non-commercial"
_OWKIN_LICENCE = "Owkin non-commercial"


def _norm(statistics: tuple[RGB, RGB]) -> dict[str, RGB]:
    return {"mean": statistics[0], "std": statistics[1]}


_ROWS = (
    _resnet(
        "resnet18",
        "ResNet-18, ImageNet (torchvision)",
        "timm/resnet18.tv_in1k",
        18,
        licence="BSD-3-Clause",
        **_norm(IMAGENET),
    ),
    _resnet(
        "resnet18-a1",
        "ResNet-18, ImageNet (timm a1)",
        "timm/resnet18.a1_in1k",
        18,
        licence="Apache-2.0",
        citation=_WIGHTMAN,
        resampling="bicubic",
        resize=236,
        **_norm(IMAGENET),
    ),
    _resnet(
        "resnet50",
        "ResNet-50, ImageNet (torchvision)",
        "timm/resnet50.tv_in1k",
        50,
        licence="BSD-3-Clause",
        **_norm(IMAGENET),
    ),
    _resnet(
        "resnet50-tv2",
        "ResNet-50, ImageNet (torchvision, second recipe)",
        "timm/resnet50.tv2_in1k",
        50,
        licence="BSD-3-Clause",
        **_norm(IMAGENET),
    ),
    _resnet(
        "resnet50-a1",
        "ResNet-50, ImageNet (timm a1)",
        "timm/resnet50.a1_in1k",
        50,
        licence="Apache-2.0",
        citation=_WIGHTMAN,
        resampling="bicubic",
        resize=236,
        **_norm(IMAGENET),
    ),
    _resnet(
        "resnet18-ciga",
        "ResNet-18, SimCLR on 57 pathology datasets",
        "ozanciga/self-supervised-histopathology",
        18,
        files=("tenpercent_resnet18.ckpt",),
        url="https://github.com/ozanciga/self-supervised-histopathology/releases/download/tenpercent/",
        page="https://github.com/ozanciga/self-supervised-histopathology",
        licence="MIT",
        citation="Ciga, Xu & Martel, Self supervised contrastive learning for digital histopathology, 2022, "
        "arXiv:2011.13971",
        # The publisher states no normalisation.
        **_norm(IMAGENET),
    ),
    Row(
        name="efficientnet-b0",
        title="EfficientNet-b0, ImageNet (timm ra)",
        config=efficientnet("b0"),
        repo="timm/efficientnet_b0.ra_in1k",
        files=("model.safetensors",),
        layer="blocks.10",
        stride=16,
        channels=112,
        parameters=5_288_548,
        resize=256,
        resampling="bicubic",
        licence="Apache-2.0",
        citation=_TAN,
        page=_hub("timm/efficientnet_b0.ra_in1k"),
        **_norm(IMAGENET),
    ),
    Row(
        name="efficientnet-b1",
        title="EfficientNet-b1, ImageNet (timm ft)",
        config=efficientnet("b1"),
        repo="timm/efficientnet_b1.ft_in1k",
        files=("model.safetensors",),
        layer="blocks.15",
        stride=16,
        channels=112,
        parameters=7_794_184,
        resize=256,
        resampling="bicubic",
        licence="Apache-2.0",
        citation=_TAN,
        page=_hub("timm/efficientnet_b1.ft_in1k"),
        **_norm(IMAGENET),
    ),
    _vit(
        "uni",
        "UNI",
        ViTConfig(patch=16, layer_scale=True, **_LARGE),
        "MahmoodLab/UNI",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation=f"{_UNI}, doi:10.1038/s41591-024-02857-3",
        mpp=(0.5,),
        parameters=303_350_784,
        **_norm(IMAGENET),
    ),
    _vit(
        "uni2-h",
        "UNI2-h",
        ViTConfig(
            patch=14,
            dim=1536,
            depth=24,
            heads=24,
            mlp_width=8192,
            mlp="swiglu",
            registers=8,
            embed_prefix=False,
            layer_scale=True,
        ),
        "MahmoodLab/UNI2-h",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation=f"{_UNI}, doi:10.1038/s41591-024-02857-3",
        mpp=(0.5,),
        parameters=681_394_176,
        **_norm(IMAGENET),
    ),
    _vit(
        "prov-gigapath",
        "Prov-GigaPath, tile encoder",
        ViTConfig(patch=16, **_DINOV2_GIANT),
        "prov-gigapath/prov-gigapath",
        "pytorch_model.bin",
        licence="research only (code Apache-2.0)",
        gated=True,
        citation="Xu et al., A whole-slide foundation model for digital pathology from real-world data, Nature 2024, "
        "doi:10.1038/s41586-024-07441-w",
        mpp=(0.5,),
        resize=256,
        resampling="bicubic",
        parameters=1_134_953_984,
        **_norm(IMAGENET),
    ),
    _vit(
        "virchow",
        "Virchow",
        ViTConfig(patch=14, **_VIRCHOW),
        "paige-ai/Virchow",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation="Vorontsov et al., A foundation model for clinical-grade computational pathology and rare cancers "
        "detection, Nature Medicine 2024, doi:10.1038/s41591-024-03141-0",
        mpp=(0.5,),
        resampling="bicubic",
        parameters=631_229_184,
        **_norm(IMAGENET),
    ),
    _vit(
        "virchow2",
        "Virchow2",
        ViTConfig(patch=14, registers=4, **_VIRCHOW),
        "paige-ai/Virchow2",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Zimmermann et al., Virchow2: scaling self-supervised mixed magnification models in pathology, 2024, "
        "arXiv:2408.00738",
        mpp=ALL_MAGNIFICATIONS,
        resampling="bicubic",
        parameters=631_239_424,
        **_norm(IMAGENET),
    ),
    _vit(
        "h-optimus-0",
        "H-optimus-0",
        ViTConfig(patch=14, **{**_DINOV2_GIANT, **_REGISTERS}),
        "bioptimus/H-optimus-0",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation="Saillard et al., H-optimus-0, 2024, https://github.com/bioptimus/releases",
        mpp=(0.5,),
        parameters=1_134_774_272,
        **_norm(BIOPTIMUS),
    ),
    _vit(
        "h-optimus-1",
        "H-optimus-1",
        ViTConfig(patch=14, **{**_DINOV2_GIANT, **_REGISTERS}),
        "bioptimus/H-optimus-1",
        "model.safetensors",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Bioptimus, H-optimus-1, 2025, https://huggingface.co/bioptimus/H-optimus-1",
        mpp=(0.5,),
        parameters=1_134_774_272,
        **_norm(BIOPTIMUS),
    ),
    _vit(
        "h0-mini",
        "H0-mini",
        ViTConfig(patch=14, mlp="swiglu", **{**_BASE, **_REGISTERS, "mlp_width": 4096}),
        "bioptimus/H0-mini",
        "model.safetensors",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Filiot et al., Distilling foundation models for robust and efficient models in digital pathology, "
        "2025, arXiv:2501.16239",
        mpp=(0.5,),
        parameters=85_743_360,
        **_norm(BIOPTIMUS),
    ),
    _vit(
        "phikon",
        "Phikon",
        ViTConfig(patch=16, eps=1e-12, resampling="bicubic", **_BASE),
        "owkin/phikon",
        "model.safetensors",
        "pytorch_model.bin",
        licence=_OWKIN_LICENCE,
        citation="Filiot et al., Scaling self-supervised learning for histopathology with masked image modeling, 2023, "
        "doi:10.1101/2023.07.21.23292757",
        mpp=(0.5,),
        parameters=85_798_656,
        **_norm(IMAGENET),
    ),
    _vit(
        "phikon-v2",
        "Phikon-v2",
        ViTConfig(patch=16, layer_scale=True, resampling="bicubic", **_LARGE),
        "owkin/phikon-v2",
        licence=_OWKIN_LICENCE,
        citation="Filiot et al., Phikon-v2, a large and public feature extractor for biomarker prediction, 2024, "
        "arXiv:2409.09173",
        mpp=(0.5,),
        parameters=303_350_784,
        **_norm(IMAGENET),
    ),
    _vit(
        "conch-v1.5",
        "CONCH v1.5, vision tower",
        ViTConfig(
            patch=16, layer_scale=True, resampling="bicubic_offset", pool=AttentionPoolConfig(768, 8), **_LARGE
        ),
        "MahmoodLab/conchv1_5",
        "pytorch_model_vision.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Ding et al., Multimodal whole slide foundation model for pathology, 2024, arXiv:2411.19666",
        mpp=(0.5,),
        input_size=448,
        resize=448,
        parameters=306_109_184,
        **_norm(IMAGENET),
    ),
    *(
        _vit(
            f"kaiko-{size[0]}{patch}",
            f"Kaiko ViT-{size[0].upper()}/{patch}",
            ViTConfig(patch=patch, **arguments),
            f"1aurent/vit_{size}_patch{patch}_224.kaiko_ai_towards_large_pathology_fms",
            licence=_KAIKO_LICENCE,
            citation=_KAIKO,
            mpp=ALL_MAGNIFICATIONS,
            parameters=parameters,
            **_norm(HALF),
        )
        for size, patch, arguments, parameters in (
            ("small", 8, _SMALL, 21_670_272),
            ("small", 16, _SMALL, 21_665_664),
            ("base", 8, _BASE, 85_807_872),
            ("base", 16, _BASE, 85_798_656),
        )
    ),
    _vit(
        "kaiko-l14",
        "Kaiko ViT-L/14",
        ViTConfig(patch=14, **{**_LARGE, **_REGISTERS}),
        "1aurent/vit_large_patch14_reg4_224.kaiko_ai_towards_large_pathology_fms",
        licence=_KAIKO_LICENCE,
        citation=_KAIKO,
        mpp=ALL_MAGNIFICATIONS,
        parameters=303_231_488,
        **_norm(HALF),
    ),
    *(
        _vit(
            f"lunit-s{patch}",
            f"Lunit DINO ViT-S/{patch}",
            ViTConfig(patch=patch, **_SMALL),
            f"1aurent/vit_small_patch{patch}_224.lunit_dino",
            licence=_LUNIT_LICENCE,
            citation=_LUNIT,
            mpp=(0.25, 0.5),
            parameters=parameters,
            **_norm(LUNIT),
        )
        for patch, parameters in ((8, 21_670_272), (16, 21_665_664))
    ),
    _resnet(
        "lunit-resnet50",
        "Lunit ResNet-50, Barlow Twins",
        "1aurent/resnet50.lunit_bt",
        50,
        licence=_LUNIT_LICENCE,
        citation=_LUNIT,
        mpp=(0.25, 0.5),
        **_norm(LUNIT),
    ),
    _vit(
        "hibou-b",
        "Hibou-B",
        ViTConfig(patch=14, mlp="swiglu", **{**_BASE, **_REGISTERS, "mlp_width": 4096}),
        "histai/hibou-b",
        "model.safetensors",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation=_HIBOU,
        resampling="bicubic",
        parameters=85_743_360,
        **_norm(HIBOU),
    ),
    _vit(
        "hibou-l",
        "Hibou-L",
        ViTConfig(patch=14, mlp="swiglu", **{**_LARGE, **_REGISTERS, "mlp_width": 5472}),
        "histai/hibou-L",
        "model.safetensors",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation=_HIBOU,
        resampling="bicubic",
        parameters=303_660_032,
        **_norm(HIBOU),
    ),
    Row(
        name="ctranspath",
        title="CTransPath",
        config=SwinConfig(),
        repo="MahmoodLab/hest-bench",
        repo_type="dataset",
        files=("fm_v1/ctranspath/CHIEF_CTransPath.pth",),
        layer="layers.3",
        stride=32,
        channels=768,
        licence="GPL-3.0 (weights non-commercial)",
        gated=True,
        citation="Wang et al., Transformer-based unsupervised contrastive learning for histopathological image "
        "classification, Medical Image Analysis 2022, doi:10.1016/j.media.2022.102559",
        page="https://huggingface.co/datasets/MahmoodLab/hest-bench",
        mpp=(1.0,),
        parameters=27_520_038,
        **_norm(IMAGENET),
    ),
    _vit(
        "gpfm",
        "GPFM",
        ViTConfig(patch=14, layer_scale=True, **_LARGE),
        "majiabo/GPFM",
        "GPFM.pth",
        licence="CC-BY-NC-ND-4.0",
        citation="Ma et al., A generalizable pathology foundation model using a unified knowledge distillation "
        "pretraining framework, 2024, arXiv:2407.18449",
        resampling="bicubic",
        parameters=303_231_488,
        **_norm(IMAGENET),
    ),
    _vit(
        "midnight-12k",
        "Midnight-12k",
        ViTConfig(patch=14, resampling="bicubic", **_DINOV2_GIANT),
        "kaiko-ai/midnight",
        licence="MIT",
        citation="Karasikov et al., Training state-of-the-art pathology foundation models with orders of magnitude "
        "less data, 2025, arXiv:2504.05186",
        mpp=ALL_MAGNIFICATIONS,
        parameters=1_134_774_272,
        **_norm(HALF),
    ),
)

CATALOG: dict[str, Row] = {row.name: row for row in _ROWS}


# timm:NAME

_TIMM_VITS = {
    "tiny": _TINY,
    "small": _SMALL,
    "base": _BASE,
    "large": _LARGE,
    "huge": _HUGE,
    "giant": _GIANT,
    "gigantic": _GIGANTIC,
}
# What the tag after the dot says of the images: those of Google's own training are in −1 … 1.
_HALF_TAGS = ("augreg", "orig", "sam", "ra4")
_IMAGENET_TAGS = ("dino", "mae", "lvd142m")
_NON_COMMERCIAL_TAGS = ("mae", "fb_")


def _timm(name: str) -> Row:
    architecture, _, tag = name.removeprefix("timm:").partition(".")
    repo = f"timm/{architecture}.{tag}"
    licence = "CC-BY-NC-4.0" if tag.startswith(_NON_COMMERCIAL_TAGS) else "Apache-2.0"
    if tag and architecture in RESNETS:
        return _resnet(
            name,
            f"{architecture} ({tag})",
            repo,
            int(architecture.removeprefix("resnet")),
            licence="BSD-3-Clause" if tag.startswith("tv") else licence,
            resampling="bilinear" if tag.startswith(("tv", "fb_")) else "bicubic",
            **_norm(HALF if tag.startswith(_HALF_TAGS) else IMAGENET),
        )
    config = _timm_vit(architecture)
    if config is None or not tag.startswith((*_HALF_TAGS, *_IMAGENET_TAGS)):
        raise InputError(
            f"{name}: give a plain ViT or ResNet of timm with its tag, such as timm:vit_small_patch16_224.augreg_in21k, "
            "timm:vit_base_patch14_dinov2.lvd142m or timm:resnet34.a1_in1k"
        )
    return _vit(
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
        **_norm(HALF if tag.startswith(_HALF_TAGS) else IMAGENET),
    )


def _timm_vit(architecture: str) -> ViTConfig | None:
    if match := re.fullmatch(r"vit_(small|base|large|giant)_patch14(_reg4)?_dinov2", architecture):
        arguments = _DINOV2_GIANT if match[1] == "giant" else _TIMM_VITS[match[1]]
        registers = _REGISTERS if match[2] else {}
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
