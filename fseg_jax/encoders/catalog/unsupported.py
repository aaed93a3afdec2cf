"""Encoders that people ask for and that are not in the catalog: what each is, why not, and what comes near.

A name that is known here never gets the most similar name of the catalog, which would be another model.
"""

from typing import NamedTuple


class Unsupported(NamedTuple):
    """A known encoder that the catalog lacks."""

    what: str
    why: str
    near: str  # names to use instead, as a phrase


_SLIDES = "it embeds whole slides, and gives no feature of a place"
_CLOSED = "its weights are not published"
_COARSE = "its patches of 32 pixels are too coarse to segment by"
_RUDOLF = "how it rotates positions is published behind its gate alone"
_PATCH8 = "kaiko-b8 or kaiko-s8, whose patches are 8 pixels too"

UNSUPPORTED: dict[str, Unsupported] = {
    "atlas": Unsupported("Atlas of Aignostics and Mayo Clinic", _CLOSED, "h-optimus-1 or uni2-h"),
    "atlas-2": Unsupported("Atlas 2 of Aignostics and Mayo Clinic", _CLOSED, "h-optimus-1 or uni2-h"),
    "biomedclip": Unsupported(
        "BiomedCLIP, a model of images and words of all medicine", "it is not of slides", "conch-v1.5"
    ),
    "chief": Unsupported("CHIEF", _SLIDES, "ctranspath, whose features it is made of"),
    "conch": Unsupported("the name of two models", "one must be named", "conch-v1 or conch-v1.5"),
    "dinov2": Unsupported(
        "DINOv2, several networks", "name one", "timm:vit_large_patch14_reg4_dinov2.lvd142m"
    ),
    "dinov3": Unsupported("DINOv3, several networks", "name one", "timm:vit_large_patch16_dinov3.lvd1689m"),
    **{
        f"efficientnet-b{scale}": Unsupported(
            f"EfficientNet-b{scale} of ImageNet", "it has no row", "efficientnet-b1 or efficientnet-lite2"
        )
        for scale in range(2, 8)
    },
    "exaonepath": Unsupported("EXAONEPath of LG", "it has no row", "phikon"),
    "gigapath-slide": Unsupported("the slide encoder of Prov-GigaPath", _SLIDES, "prov-gigapath, its tiles'"),
    "kronos": Unsupported("KRONOS", "it is for stains of many markers, not for H&E", "uni2-h"),
    "madeleine": Unsupported("MADELEINE", _SLIDES, "conch-v1.5"),
    "medsiglip": Unsupported(
        "MedSigLIP of Google, a model of images and words of all medicine",
        "it is not of slides",
        "conch-v1.5",
    ),
    "midnight": Unsupported(
        "the name of two models", "one must be named", "midnight-12k of kaiko.ai or openmidnight of Sophont"
    ),
    "midnight-92k": Unsupported("Midnight-92k of kaiko.ai", _CLOSED, "midnight-12k"),
    "moozy": Unsupported("MOOZY", _SLIDES, "lunit-s8, whose features it is made of"),
    "musk": Unsupported(
        "MUSK, a transformer of images and words (BEiT-3)", "its architecture is not made", "conch-v1.5"
    ),
    "plip": Unsupported("PLIP, a CLIP ViT-B/32 of pathology", _COARSE, "conch-v1.5"),
    "pluto": Unsupported("PLUTO of PathAI", _CLOSED, "h0-mini"),
    "pluto-4": Unsupported("PLUTO-4 of PathAI", _CLOSED, "h-optimus-1"),
    "prism": Unsupported("PRISM", _SLIDES, "virchow, whose features it is made of"),
    "prism2": Unsupported("PRISM2", _SLIDES, "virchow2, whose features it is made of"),
    "prost40m": Unsupported(
        "Prost40M, a ViT-S/14 of the prostate",
        "how its images are normalised could not be confirmed",
        "kaiko-s16",
    ),
    "quiltnet-b16": Unsupported(
        "QuiltNet-B-16, a CLIP ViT-B/16 of pathology", "its architecture is not made", "conch-v1.5"
    ),
    "quiltnet-b32": Unsupported("QuiltNet-B-32, a CLIP ViT-B/32 of pathology", _COARSE, "conch-v1.5"),
    "quiltnet": Unsupported("QuiltNet, several CLIP models of pathology", "they have no rows", "conch-v1.5"),
    "remedis": Unsupported("REMEDIS of Google", "it is published for TensorFlow alone", "resnet50"),
    "rudolfv": Unsupported("RudolfV of Aignostics", _CLOSED, "h-optimus-0"),
    "rudolfv-2": Unsupported("RudolfV-2 of Aignostics, a ViT-g/8", _RUDOLF, _PATCH8),
    "rudolfv-2-b": Unsupported("RudolfV-2-B of Aignostics, a ViT-B/8", _RUDOLF, _PATCH8),
    "rudolfv-2-s": Unsupported("RudolfV-2-S of Aignostics, a ViT-S/8", _RUDOLF, _PATCH8),
    "seal-conch": Unsupported("SEAL on CONCH", "its architecture is not made", "conch-v1"),
    "seal-univ2": Unsupported("SEAL on UNI2-h", "its architecture is not made", "uni2-h"),
    "titan": Unsupported("TITAN", _SLIDES, "conch-v1.5, whose features it is made of"),
    "virchow2g": Unsupported("Virchow2G of Paige", _CLOSED, "virchow2"),
    "virchow2g-mini": Unsupported("Virchow2G Mini of Paige", _CLOSED, "h0-mini"),
}
