"""Options that several commands share, each defined once."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fseg_jax.cli.parameters import Number, Shard, SlidePath, WholeNumber
from fseg_jax.errors import InputError

if TYPE_CHECKING:
    from fseg_jax.codebook import Codebook
    from fseg_jax.outputs.form import OutputForm

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

MICRONS = Number(1e-3, 1e4)  # per pixel
RATE = Number(0, 1, above=True, below=True)
SHARE = Number(0, 1)
PATH = click.Path(path_type=Path)
SLIDE = SlidePath()
_ENCODER = "he-small"  # unless another is given


def combine(*decorators: Decorator) -> Callable[[Function], Function]:
    """Make one decorator of several; the help lists their options in this order."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def output_option(metavar: str = "FOLDER", help: str = "Folder for the results.") -> Decorator:
    """Return the option ``-o``, which every command that writes results needs."""
    return click.option("-o", "--output", required=True, type=PATH, metavar=metavar, help=help)


def mpp_override_option(help: str) -> Decorator:
    """Return the option ``--mpp-override``; what it overrides depends on the command."""
    return click.option("--mpp-override", type=MICRONS, metavar="µm", help=help)


def no_tissue_option(help: str = "Take the whole slide, glass too.") -> Decorator:
    """Return the option ``--no-tissue``."""
    return click.option("--no-tissue", is_flag=True, help=help)


def concepts_option(help: str) -> Decorator:
    """Return the option ``--concepts``."""
    return click.option("--concepts", type=WholeNumber(1), default=20, show_default=True, help=help)


def shard_option(help: str, default: str | None = None) -> Decorator:
    """Return the option ``--shard``, a share of a manifest's slides."""
    return click.option("--shard", type=Shard(), default=default, metavar="i/n", help=help)


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a line of JSON for each slide to standard output (paths, areas, seconds), and all else to "
    "standard error.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing results.")
seed_option = click.option(
    "--seed", type=WholeNumber(0, 2**31 - 1), default=0, show_default=True, help="Random seed."
)
anndata_option = click.option(
    "--anndata", is_flag=True, help="Also write an AnnData file (.h5ad), for scanpy and squidpy."
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "tf32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Precision of the encoder's matrix products; sums are float32. tf32 is for a GPU or a TPU.",
)


def _make_encoder_options(default: str | None, shown: str | bool) -> Decorator:
    return combine(
        click.option(
            "--encoder",
            default=default,
            show_default=shown,
            metavar="NAME",
            help="Encoder to use; `fseg encoders` lists them. NAME+NAME: their features side by side.",
        ),
        click.option(
            "--weights",
            type=PATH,
            metavar="FILE",
            help="File with the encoder's weights, instead of the hub's.",
        ),
        dtype_option,
    )


encoder_options = _make_encoder_options(_ENCODER, True)
encoder_or_codebook_options = _make_encoder_options(None, f"the codebook's, or {_ENCODER}")


def choose_encoder(given: str | None, codebook: "Codebook | None") -> str:
    """Choose the encoder: that given, the codebook's where its name says which it is, or the default."""
    from fseg_jax.encoders.load import is_known

    if given is not None:
        return given
    named = codebook.provenance.encoder if codebook else ""
    return named if is_known(named) else _ENCODER


encoders_option = click.option(
    "--encoder",
    "encoders",
    multiple=True,
    default=[_ENCODER],
    show_default=True,
    metavar="NAME,...",
    help="Encoders to compare; `fseg encoders` lists them.",
)
weights_option = click.option(
    "--weights",
    multiple=True,
    metavar="[NAME=]FILE,...",
    help="Files with the weights of these encoders, instead of the hub's; one encoder needs no NAME.",
)
cluster_counts_option = click.option(
    "--k",
    type=WholeNumber(1),
    multiple=True,
    default=[16, 32, 64, 128, 256],
    show_default=True,
    metavar="K,...",
    help="Numbers of clusters.",
)
artefacts_option = click.option(
    "--artefacts",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    show_default=True,
    help="Whether ink, folds and what is out of focus keep the labels of their tissue; no cluster is fitted "
    "on them either way.",
)
method_options = combine(
    click.option(
        "--codebook",
        type=PATH,
        metavar="FILE",
        help="Cluster centres: a file of fseg fit or fseg codebook import, he-small or he-small-fine.",
    ),
    click.option(
        "--k",
        type=WholeNumber(1),
        metavar="K",
        help="Number of clusters: one that the codebook has, or how many to fit on the slide (8).",
    ),
    click.option(
        "--mode",
        type=click.Choice(["fixed", "assign"]),
        default="fixed",
        show_default=True,
        help="fixed: concepts are the centres. assign: factorize each tile, and name its concepts by them.",
    ),
    concepts_option("Number of concepts in a tile, in mode assign."),
    click.option(
        "--resize",
        type=click.Choice(["bilinear", "nearest"]),
        default="bilinear",
        show_default=True,
        help="bilinear: resize the weights, then label. nearest: label, then resize the labels.",
    ),
    click.option(
        "--smoothing",
        type=Number(0, 1000),
        show_default="1 token",
        metavar="MICRONS",
        help="Average the weights of neighbours that are alike by a Gaussian this wide; 0 (the paper): none.",
    ),
    click.option(
        "--min-region",
        type=Number(0, 1e9),
        show_default="6 tokens",
        metavar="µm²",
        help="Give regions of less than this area to their neighbours, in all outputs; 0 (the paper): none.",
    ),
    click.option(
        "--mixtures",
        type=WholeNumber(0, 64),
        default=4,
        show_default=True,
        metavar="M",
        help="Centres for tokens at the border of tissue, which name nothing, where clusters are fitted on "
        "the slide; a codebook has its own. 0 (the paper): none.",
    ),
)
stain_normalization_option = click.option(
    "--stain-normalization/--no-stain-normalization",
    default=None,
    show_default="as the codebook was fitted; to fit one, as suits the encoder; a slide alone: no",
    help="Give each slide's tissue the colours of a standard stain before it is encoded, so that clusters "
    "follow tissue and not the laboratory.",
)
names_option = click.option(
    "--names",
    type=PATH,
    metavar="FILE",
    help="Names of clusters: CSV with the columns cluster, name and, if wanted, colour (#rrggbb).",
)
form_options = combine(
    click.option(
        "--image/--no-image",
        default=True,
        show_default=True,
        help="Whether NAME.ome.zarr holds a picture of the slide with the labels inside, as viewers want it; "
        "the labels alone otherwise.",
    ),
    click.option(
        "--shards/--no-shards",
        default=True,
        show_default=True,
        help="Whether chunks of labels share files; without, there are more, which any web server gives.",
    ),
    click.option(
        "--outlines",
        type=click.Choice(["regions", "clusters", "detections"]),
        default="regions",
        show_default=True,
        help="What QuPath gets: an annotation for each region, one for all regions of a cluster, or a "
        "detection for each region, for slides of very many.",
    ),
    click.option(
        "--class-prefix",
        default="",
        metavar="TEXT",
        help="Put before the clusters' names in QuPath's classes; {slide} is the slide's name: "
        "'{slide} ' keeps clusters of slides fitted alone apart.",
    ),
)
slides_folder_option = click.option(
    "--slides",
    "slides_folder",
    type=PATH,
    metavar="FOLDER",
    help="With --from-h5: the folder of the slides, for their pictures and resolutions.",
)
h5_options = combine(
    slides_folder_option,
    mpp_override_option(
        "With --from-h5: resolution of slides in µm per pixel, where they are not at hand or do not say."
    ),
)
frame_option = click.option(
    "--frame",
    type=click.Choice(["bounds", "canvas"]),
    default="bounds",
    show_default=True,
    help="What coordinates count from, in and out, where a file is a scan on a larger canvas (.mrxs, .scn): "
    "the scan, as QuPath shows it, or the canvas, as OpenSlide counts.",
)
series_option = click.option(
    "--series",
    type=WholeNumber(0),
    metavar="NUMBER",
    show_default="the largest",
    help="Which image of the file to read, counted from 0 as its writer does, where it has several: scenes, "
    "a macro. A warning lists them where the choice is not plain.",
)
tissue_options = combine(
    click.option(
        "--tissue",
        metavar="FILE",
        help="Mask image or GeoJSON file that marks the tissue: from fseg tissue, QuPath, TRIDENT, HEST, "
        "GrandQC.",
    ),
    no_tissue_option(),
    mpp_override_option("Resolution of the slide in µm per pixel, instead of what its file says."),
    frame_option,
    series_option,
)
tile_option = click.option(
    "--tile",
    type=WholeNumber(1),
    metavar="PIXELS",
    show_default="the encoder's",
    help="Tile side in pixels.",
)
tiling_options = combine(
    click.option(
        "--mpp",
        type=MICRONS,
        metavar="µm",
        show_default="the codebook's, or the encoder's",
        help="Resolution to work at, in µm per pixel.",
    ),
    tile_option,
    click.option(
        "--halo",
        type=Number(0, 0.25),
        default=1 / 16,
        metavar="FRACTION",
        show_default="1/16",
        help="Overlap on each side of a tile, as a fraction of its side.",
    ),
)
patch_options = combine(
    click.option(
        "--patch",
        type=WholeNumber(1),
        default=256,
        show_default=True,
        metavar="PIXELS",
        help="Patch side in pixels.",
    ),
    click.option(
        "--overlap",
        type=Number(0, 1, below=True),
        default=0.5,
        show_default=True,
        metavar="FRACTION",
        help="Overlap of neighbouring patches, as a fraction of their side.",
    ),
    click.option(
        "--mpp",
        type=MICRONS,
        default=0.5,
        show_default=True,
        metavar="µm",
        help="Resolution to work at, in µm per pixel.",
    ),
    click.option(
        "--min-tissue",
        type=SHARE,
        default=0.25,
        show_default=True,
        metavar="FRACTION",
        help="Smallest fraction of tissue in a patch that is used.",
    ),
)
batching_options = combine(
    click.option(
        "--batch",
        type=WholeNumber(1),
        show_default="by the device's memory; on a CPU 8, or 4 tiles of 512 pixels",
        help="Number of images that go through the encoder at once.",
    ),
    click.option(
        "--threads",
        type=WholeNumber(1, 1024),
        show_default="2 on a CPU, or else one a core, 2 to 16",
        help="Number of threads that decode images.",
    ),
)
manifest_options = combine(
    click.option("--split", metavar="NAME", help="Use only the slides of this split."),
    click.option("--sample-check", is_flag=True, help="Open every slide's header before the run starts."),
    mpp_override_option("Resolution of slides in µm per pixel, where the manifest has none."),
    frame_option,
    series_option,
)
classes_option = click.option(
    "--classes",
    metavar="A,B",
    show_default="the seeds' own",
    help="Names of the classes, the background's first.",
)
distance_option = click.option(
    "--distance",
    type=click.Choice(["euclidean", "cosine"]),
    default="euclidean",
    show_default=True,
    help="Distance between the embeddings of patches.",
)


def pop_form(options: dict[str, Any]) -> "OutputForm":
    """Take the options of ``form_options`` out of the options."""
    from fseg_jax.outputs.form import OutputForm

    return OutputForm(**{field.name: options.pop(field.name) for field in fields(OutputForm)})


def pop_tissue_setting(options: dict[str, Any]) -> str:
    """Take --tissue and --no-tissue out of the options, as one value: "find", "all" or a file."""
    tissue, everything = options.pop("tissue", None), options.pop("no_tissue", False)
    if tissue and everything:
        raise InputError("--tissue and --no-tissue contradict each other: give one of them")
    return "all" if everything else tissue or "find"
