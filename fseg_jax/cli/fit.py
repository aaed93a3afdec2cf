"""``fseg fit``."""

from pathlib import Path
from typing import Any

import click

from fseg_jax.cli.options import (
    MICRONS,
    PATH,
    SHARE,
    batching_options,
    cluster_counts_option,
    combine,
    encoder_options,
    manifest_options,
    no_tissue_option,
    output_option,
    overwrite_option,
    seed_option,
    shard_option,
    stain_normalization_option,
)
from fseg_jax.cli.parameters import ListCommand, WholeNumber
from fseg_jax.cli.progress import show_progress
from fseg_jax.errors import InputError, first_line
from fseg_jax.process import is_quiet


@click.command(cls=ListCommand)
@click.argument("manifest")
@combine(
    output_option("CODEBOOK", "Codebook to write, a .safetensors file; its card goes to a folder beside it."),
    encoder_options,
    cluster_counts_option,
)
@click.option(
    "--tiles-per-slide",
    type=WholeNumber(1),
    default=200,
    show_default=True,
    help="Largest number of tiles taken from a slide.",
)
@click.option(
    "--tile",
    type=WholeNumber(1),
    metavar="PIXELS",
    show_default="256, or the next smaller multiple of the encoder's stride",
    help="Tile side in pixels.",
)
@click.option(
    "--mpp",
    type=MICRONS,
    default=1.0,
    show_default=True,
    metavar="µm",
    help="Resolution to work at, in µm per pixel.",
)
@click.option(
    "--on",
    type=click.Choice(["tiles", "tokens"]),
    default="tiles",
    show_default=True,
    help="tiles: fit on the average of each tile, as the paper does. tokens: on tokens drawn from tiles.",
)
@click.option(
    "--min-tissue",
    type=SHARE,
    default=0.5,
    show_default=True,
    metavar="FRACTION",
    help="Smallest fraction of tissue in a tile that is used.",
)
@click.option(
    "--mixtures",
    type=WholeNumber(0, 64),
    default=4,
    show_default=True,
    metavar="M",
    help="Fit clusters on what lies deep in tissue, and M centres that name nothing on tokens at its border. "
    "0 (the paper): fit on all tissue.",
)
@click.option(
    "--algorithm",
    type=click.Choice(["lloyd", "minibatch"]),
    default="lloyd",
    show_default=True,
    help="lloyd: update centres after each pass. minibatch: after each batch (fewer passes, less exact).",
)
@click.option("--spherical", is_flag=True, help="Cluster by cosine distance.")
@click.option(
    "--restarts",
    type=WholeNumber(1),
    default=2,
    show_default=True,
    help="Number of random starts on a sample; the best one goes on.",
)
@click.option(
    "--features",
    type=PATH,
    metavar="FOLDER",
    show_default="CODEBOOK.features",
    help="Folder for the features of tiles; another fit takes them from there.",
)
@click.option(
    "--store",
    "stored_dtype",
    type=click.Choice(["float16", "bfloat16"]),
    default="float16",
    show_default=True,
    help="Number type in which features are stored.",
)
@combine(
    stain_normalization_option,
    no_tissue_option(),
    manifest_options,
    shard_option("Only sample every n-th slide from the i-th on, counted from 0; fit nothing."),
)
@click.option(
    "--distributed",
    is_flag=True,
    help="Run as one process of a jax.distributed job (SLURM, TPU, or JAX_COORDINATOR_ADDRESS …).",
)
@combine(seed_option, batching_options, overwrite_option)
def fit(
    manifest: str,
    output: Path,
    split: str | None,
    features: Path | None,
    shard: tuple[int, int] | None,
    distributed: bool,
    sample_check: bool,
    overwrite: bool,
    **options: Any,
) -> int:
    """Fit codebooks on a cohort: tiles sampled from every slide of MANIFEST, clustered into each k.

    MANIFEST is a CSV file with the columns slide_id, path and, if wanted, mpp, series, tissue, site, split;
    or a folder of slides; or a glob in quotes. Features are kept in a folder, so that a run
    that is interrupted goes on, and one with another --k or --seed needs no slide.
    """
    if distributed and shard:
        raise InputError("--shard and --distributed contradict each other: give one of them")
    if distributed:  # before anything else that initializes JAX
        start_distributed()
    from fseg_jax.cohort.fit import FitSettings, check_codebook_path, fit_cohort
    from fseg_jax.cohort.manifest import load_manifest, select_split
    from fseg_jax.cohort.sample_folder import SampleSettings, estimate_bytes, write_failures
    from fseg_jax.cohort.sampling import sample_cohort
    from fseg_jax.encoders.load import load_encoder

    if not shard:
        check_codebook_path(output, overwrite)
    rows = load_manifest(
        manifest, sample_check=sample_check, mpp_override=options["mpp_override"], series=options["series"]
    )
    slides = select_split(rows, split, manifest)
    encoder = load_encoder(options.pop("encoder"), weights=options.pop("weights"), dtype=options.pop("dtype"))
    settings = SampleSettings(
        tiles=options["tiles_per_slide"],
        tile=options["tile"],
        mpp=options["mpp"],
        on=options["on"],
        min_tissue=options["min_tissue"],
        pure=options["mixtures"] > 0,
        tissue="all" if options["no_tissue"] else "find",
        stain_normalization=options["stain_normalization"],
        mpp_override=options["mpp_override"],
        frame=options["frame"],
        series=options["series"],
        dtype=options["stored_dtype"],
        batch=options["batch"],
        threads=options["threads"],
    )
    folder = features or output.with_suffix(".features")
    size = estimate_bytes(len(slides), encoder.card, settings)
    if not is_quiet():
        click.echo(
            f"fseg: {len(slides)} slides; features, {_format_bytes(size)} at most, go to {folder}", err=True
        )
    with show_progress() as display:

        def sampling(done: int, total: int, slide_id: str) -> None:
            display.update("sampling", done, total, slide_id)

        def clustering(passes: int, shift: float) -> None:
            display.update("k-means, passes", passes, None, f"centres still move {shift:.3g} times too far")

        if shard:
            failures = sample_cohort(slides, folder, encoder, settings, shard=shard, progress=sampling)
            write_failures(folder, failures, f".{shard[0]}-of-{shard[1]}")
            done = len(slides[shard[0] :: shard[1]])
        else:
            outcome = fit_cohort(
                slides,
                output,
                encoder,
                folder,
                FitSettings(
                    settings,
                    tuple(sorted(set(options["k"]))),
                    options["algorithm"],
                    options["spherical"],
                    options["mixtures"],
                    options["restarts"],
                    options["seed"],
                ),
                source=Path(manifest).name,
                overwrite=overwrite,
                sample_progress=sampling,
                kmeans_progress=clustering,
            )
            failures, done = outcome.failures, len(slides)
            display.print(output)
            display.print(outcome.card / "index.html")
    for name, reason in failures.items():
        click.echo(f"fseg: {name}: {reason}", err=True)
    if failures:
        click.echo(f"fseg: {len(failures)} of {done} slides failed; see failures*.csv in {folder}", err=True)
    return 1 if failures else 0


def start_distributed() -> None:
    """Join the ``jax.distributed`` job that the environment describes.

    That is SLURM's, Open MPI's, Kubernetes' or a TPU's, or the job of the variables JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. Raises ``InputError`` where there is none.
    """
    import os

    import jax

    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, index = (os.environ.get(name) for name in names)
    try:
        if address and count and index:
            jax.distributed.initialize(address, int(count), int(index))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise InputError(
            f"--distributed: no job could be joined ({reason}); set {', '.join(names)}"
        ) from error


def _format_bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, size // 1_000_000)} MB"
