"""The published encoders, a row each: where the weights are, what network they fill, how they want their
images.

Data only, but for ``lookup``, which finds a row by name, or makes one for ``timm:NAME``, any plain ViT or
ResNet that timm publishes. ``architectures.abstract(row.config)`` builds the network.
"""

from typing import Any

from fseg_jax.encoders.efficientnet.network import efficientnet
from fseg_jax.encoders.rows import (
    BASE,
    DINOV2_GIANT,
    HALF,
    HUGE,
    IMAGENET,
    LARGE,
    REGISTERS,
    RGB,
    SMALL,
    Row,
    hub,
    normalised,
    resnet_row,
    vit_row,
)
from fseg_jax.encoders.swin.network import SwinConfig
from fseg_jax.encoders.timm_names import timm_row
from fseg_jax.encoders.vit.network import AttentionPoolConfig, ViTConfig
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import did_you_mean

LUNIT: tuple[RGB, RGB] = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
BIOPTIMUS: tuple[RGB, RGB] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU: tuple[RGB, RGB] = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))

ALL_MAGNIFICATIONS = (0.25, 0.5, 1.0, 2.0)

VIRCHOW: dict[str, Any] = {**HUGE, "mlp_width": 6832, "mlp": "swiglu", "layer_scale": True}

_WIGHTMAN = "Wightman et al., ResNet strikes back, 2021, arXiv:2110.00476"
_TAN = "Tan & Le, EfficientNet, ICML 2019, arXiv:1905.11946"
_UNI = (
    "Chen et al., Towards a general-purpose foundation model for computational pathology, "
    "Nature Medicine 2024, doi:10.1038/s41591-024-02857-3"
)
_KAIKO = (
    "kaiko.ai et al., Towards large-scale training of pathology foundation models, 2024, arXiv:2404.15217"
)
_LUNIT = (
    "Kang et al., Benchmarking self-supervised learning on diverse pathology datasets, CVPR 2023, "
    "arXiv:2212.04690"
)
_HIBOU = (
    "Nechaev et al., Hibou: a family of foundational vision transformers for pathology, 2024, "
    "arXiv:2406.05074"
)

_KAIKO_LICENCE = "Kaiko Non-Commercial Public License v1"
_LUNIT_LICENCE = "Lunit non-commercial"
_OWKIN_LICENCE = "Owkin non-commercial"


_ROWS = (
    resnet_row(
        "resnet18",
        "ResNet-18, ImageNet (torchvision)",
        "timm/resnet18.tv_in1k",
        18,
        licence="BSD-3-Clause",
        **normalised(IMAGENET),
    ),
    resnet_row(
        "resnet18-a1",
        "ResNet-18, ImageNet (timm a1)",
        "timm/resnet18.a1_in1k",
        18,
        licence="Apache-2.0",
        citation=_WIGHTMAN,
        resampling="bicubic",
        resize=236,
        **normalised(IMAGENET),
    ),
    resnet_row(
        "resnet50",
        "ResNet-50, ImageNet (torchvision)",
        "timm/resnet50.tv_in1k",
        50,
        licence="BSD-3-Clause",
        **normalised(IMAGENET),
    ),
    resnet_row(
        "resnet50-tv2",
        "ResNet-50, ImageNet (torchvision, second recipe)",
        "timm/resnet50.tv2_in1k",
        50,
        licence="BSD-3-Clause",
        **normalised(IMAGENET),
    ),
    resnet_row(
        "resnet50-a1",
        "ResNet-50, ImageNet (timm a1)",
        "timm/resnet50.a1_in1k",
        50,
        licence="Apache-2.0",
        citation=_WIGHTMAN,
        resampling="bicubic",
        resize=236,
        **normalised(IMAGENET),
    ),
    resnet_row(
        "resnet18-ciga",
        "ResNet-18, SimCLR on 57 pathology datasets (HistoSSL)",
        "ozanciga/self-supervised-histopathology",
        18,
        files=("tenpercent_resnet18.ckpt",),
        url="https://github.com/ozanciga/self-supervised-histopathology/releases/download/tenpercent/",
        page="https://github.com/ozanciga/self-supervised-histopathology",
        licence="MIT",
        citation="Ciga, Xu & Martel, Self supervised contrastive learning for digital histopathology, 2022, "
        "arXiv:2011.13971",
        # The publisher states no normalisation.
        **normalised(IMAGENET),
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
        page=hub("timm/efficientnet_b0.ra_in1k"),
        **normalised(IMAGENET),
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
        page=hub("timm/efficientnet_b1.ft_in1k"),
        **normalised(IMAGENET),
    ),
    vit_row(
        "uni",
        "UNI",
        ViTConfig(patch=16, layer_scale=True, **LARGE),
        "MahmoodLab/UNI",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation=_UNI,
        mpp=(0.5,),
        parameters=303_350_784,
        **normalised(IMAGENET),
    ),
    vit_row(
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
        citation=_UNI,
        mpp=(0.5,),
        parameters=681_394_176,
        **normalised(IMAGENET),
    ),
    vit_row(
        "prov-gigapath",
        "Prov-GigaPath, tile encoder",
        ViTConfig(patch=16, **DINOV2_GIANT),
        "prov-gigapath/prov-gigapath",
        "pytorch_model.bin",
        licence="research only (code Apache-2.0)",
        gated=True,
        citation="Xu et al., A whole-slide foundation model for digital pathology from real-world data, "
        "Nature 2024, "
        "doi:10.1038/s41586-024-07441-w",
        mpp=(0.5,),
        resize=256,
        resampling="bicubic",
        parameters=1_134_953_984,
        **normalised(IMAGENET),
    ),
    vit_row(
        "virchow",
        "Virchow",
        ViTConfig(patch=14, **VIRCHOW),
        "paige-ai/Virchow",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation="Vorontsov et al., A foundation model for clinical-grade computational pathology and rare "
        "cancers "
        "detection, Nature Medicine 2024, doi:10.1038/s41591-024-03141-0",
        mpp=(0.5,),
        resampling="bicubic",
        parameters=631_229_184,
        **normalised(IMAGENET),
    ),
    vit_row(
        "virchow2",
        "Virchow2",
        ViTConfig(patch=14, registers=4, **VIRCHOW),
        "paige-ai/Virchow2",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Zimmermann et al., Virchow2: scaling self-supervised mixed magnification models in "
        "pathology, 2024, "
        "arXiv:2408.00738",
        mpp=ALL_MAGNIFICATIONS,
        resampling="bicubic",
        parameters=631_239_424,
        **normalised(IMAGENET),
    ),
    vit_row(
        "h-optimus-0",
        "H-optimus-0",
        ViTConfig(patch=14, **{**DINOV2_GIANT, **REGISTERS}),
        "bioptimus/H-optimus-0",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation="Saillard et al., H-optimus-0, 2024, https://github.com/bioptimus/releases",
        mpp=(0.5,),
        parameters=1_134_774_272,
        **normalised(BIOPTIMUS),
    ),
    vit_row(
        "h-optimus-1",
        "H-optimus-1",
        ViTConfig(patch=14, **{**DINOV2_GIANT, **REGISTERS}),
        "bioptimus/H-optimus-1",
        "model.safetensors",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Bioptimus, H-optimus-1, 2025, https://huggingface.co/bioptimus/H-optimus-1",
        mpp=(0.5,),
        parameters=1_134_774_272,
        **normalised(BIOPTIMUS),
    ),
    vit_row(
        "h0-mini",
        "H0-mini",
        ViTConfig(patch=14, mlp="swiglu", **{**BASE, **REGISTERS, "mlp_width": 4096}),
        "bioptimus/H0-mini",
        "model.safetensors",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Filiot et al., Distilling foundation models for robust and efficient models in digital "
        "pathology, "
        "2025, arXiv:2501.16239",
        mpp=(0.5,),
        parameters=85_739_520,
        **normalised(BIOPTIMUS),
    ),
    vit_row(
        "phikon",
        "Phikon",
        ViTConfig(patch=16, eps=1e-12, resampling="bicubic", **BASE),
        "owkin/phikon",
        "model.safetensors",
        "pytorch_model.bin",
        licence=_OWKIN_LICENCE,
        citation="Filiot et al., Scaling self-supervised learning for histopathology with masked image "
        "modeling, 2023, "
        "doi:10.1101/2023.07.21.23292757",
        mpp=(0.5,),
        parameters=85_798_656,
        **normalised(IMAGENET),
    ),
    vit_row(
        "phikon-v2",
        "Phikon-v2",
        ViTConfig(patch=16, layer_scale=True, resampling="bicubic", **LARGE),
        "owkin/phikon-v2",
        licence=_OWKIN_LICENCE,
        citation="Filiot et al., Phikon-v2, a large and public feature extractor for biomarker prediction, "
        "2024, "
        "arXiv:2409.09173",
        mpp=(0.5,),
        parameters=303_350_784,
        **normalised(IMAGENET),
    ),
    vit_row(
        "conch-v1.5",
        "CONCH v1.5, vision tower",
        ViTConfig(
            patch=16, layer_scale=True, resampling="bicubic_offset", pool=AttentionPoolConfig(768, 8), **LARGE
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
        **normalised(IMAGENET),
    ),
    *(
        vit_row(
            f"kaiko-{size[0]}{patch}",
            f"Kaiko ViT-{size[0].upper()}/{patch}",
            ViTConfig(patch=patch, **arguments),
            f"1aurent/vit_{size}_patch{patch}_224.kaiko_ai_towards_large_pathology_fms",
            licence=_KAIKO_LICENCE,
            citation=_KAIKO,
            mpp=ALL_MAGNIFICATIONS,
            parameters=parameters,
            **normalised(HALF),
        )
        for size, patch, arguments, parameters in (
            ("small", 8, SMALL, 21_670_272),
            ("small", 16, SMALL, 21_665_664),
            ("base", 8, BASE, 85_807_872),
            ("base", 16, BASE, 85_798_656),
        )
    ),
    vit_row(
        "kaiko-l14",
        "Kaiko ViT-L/14",
        ViTConfig(patch=14, **{**LARGE, **REGISTERS}),
        "1aurent/vit_large_patch14_reg4_224.kaiko_ai_towards_large_pathology_fms",
        licence=_KAIKO_LICENCE,
        citation=_KAIKO,
        mpp=ALL_MAGNIFICATIONS,
        parameters=303_230_976,
        **normalised(HALF),
    ),
    *(
        vit_row(
            f"lunit-s{patch}",
            f"Lunit DINO ViT-S/{patch}",
            ViTConfig(patch=patch, **SMALL),
            f"1aurent/vit_small_patch{patch}_224.lunit_dino",
            licence=_LUNIT_LICENCE,
            citation=_LUNIT,
            mpp=(0.25, 0.5),
            parameters=parameters,
            **normalised(LUNIT),
        )
        for patch, parameters in ((8, 21_670_272), (16, 21_665_664))
    ),
    resnet_row(
        "lunit-resnet50",
        "Lunit ResNet-50, Barlow Twins",
        "1aurent/resnet50.lunit_bt",
        50,
        licence=_LUNIT_LICENCE,
        citation=_LUNIT,
        mpp=(0.25, 0.5),
        **normalised(LUNIT),
    ),
    vit_row(
        "hibou-b",
        "Hibou-B",
        ViTConfig(patch=14, mlp="swiglu", **{**BASE, **REGISTERS, "mlp_width": 4096}),
        "histai/hibou-b",
        "model.safetensors",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation=_HIBOU,
        resampling="bicubic",
        parameters=85_740_288,
        **normalised(HIBOU),
    ),
    vit_row(
        "hibou-l",
        "Hibou-L",
        ViTConfig(patch=14, mlp="swiglu", **{**LARGE, **REGISTERS, "mlp_width": 5472}),
        "histai/hibou-L",
        "model.safetensors",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation=_HIBOU,
        resampling="bicubic",
        parameters=303_658_240,
        **normalised(HIBOU),
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
        citation="Wang et al., Transformer-based unsupervised contrastive learning for histopathological "
        "image "
        "classification, Medical Image Analysis 2022, doi:10.1016/j.media.2022.102559",
        page="https://huggingface.co/datasets/MahmoodLab/hest-bench",
        mpp=(1.0,),
        parameters=27_520_038,
        **normalised(IMAGENET),
    ),
    vit_row(
        "gpfm",
        "GPFM",
        ViTConfig(patch=14, layer_scale=True, **LARGE),
        "majiabo/GPFM",
        "GPFM.pth",
        licence="CC-BY-NC-ND-4.0",
        citation="Ma et al., A generalizable pathology foundation model using a unified knowledge "
        "distillation "
        "pretraining framework, 2024, arXiv:2407.18449",
        resampling="bicubic",
        parameters=303_227_904,
        **normalised(IMAGENET),
    ),
    vit_row(
        "midnight-12k",
        "Midnight-12k",
        ViTConfig(patch=14, resampling="bicubic", **DINOV2_GIANT),
        "kaiko-ai/midnight",
        licence="MIT",
        citation="Karasikov et al., Training state-of-the-art pathology foundation models with orders of "
        "magnitude "
        "less data, 2025, arXiv:2504.05186",
        mpp=ALL_MAGNIFICATIONS,
        parameters=1_134_769_664,
        **normalised(HALF),
    ),
)

CATALOG: dict[str, Row] = {row.name: row for row in _ROWS}


def lookup(name: str) -> Row:
    """The row of an encoder by its name in the catalog, or of ``timm:NAME``.

    InputError for a name that is neither, with the nearest ones.
    """
    if name.startswith("timm:"):
        return timm_row(name)
    key = name.lower().replace("_", "-")
    if key in CATALOG:
        return CATALOG[key]
    near = did_you_mean(name, ("he-small", "classical", *CATALOG))
    raise InputError(
        f"no encoder is called {name!r}: {near}`fseg encoders` lists them, and timm:NAME works too"
    )
