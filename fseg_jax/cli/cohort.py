"""``fseg cohort``."""

import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from fseg_jax.cli.options import (
    PATH,
    artefacts_option,
    batching_options,
    choose_encoder,
    combine,
    encoder_or_codebook_options,
    form_options,
    json_option,
    manifest_options,
    method_options,
    names_option,
    no_tissue_option,
    pop_form,
    pop_tissue_setting,
    seed_option,
    shard_option,
    slides_folder_option,
    stain_normalization_option,
    tiling_options,
)
from fseg_jax.cli.parameters import WholeNumber
from fseg_jax.cli.terminal import encode_result, say
from fseg_jax.errors import InputError
from fseg_jax.process import is_quiet

if TYPE_CHECKING:
    from fseg_jax.cohort.job import Job
    from fseg_jax.cohort.patch_clusters import PatchClusterSummary
    from fseg_jax.cohort.run import Outcome

_DEFAULT = click.core.ParameterSource.DEFAULT
# Options that cannot be chosen again once features are kept.
_FIXED_BY_FEATURES = (
    *("encoder", "weights", "dtype", "mpp", "tile", "halo", "tissue", "no_tissue", "stain_normalization"),
    *("mpp_override", "frame", "series", "keep_features", "sample_check"),
)

_FOR_PATCHES = {  # options that go with --from-h5
    *("output", "from_h5", "slides_folder", "names", "redo", "codebook", "k", "seed", "mpp_override"),
    *("image", "shards", "outlines", "class_prefix", "as_json"),
}


@click.command()
@click.argument("manifest", required=False)
@combine(
    # A text: a path would take one slash out of s3://.
    click.option(
        "-o",
        "--output",
        required=True,
        metavar="PLACE",
        help="Place for the results: a folder, s3://… or gs://….",
    ),
    encoder_or_codebook_options,
    method_options,
    names_option,
    form_options,
    tiling_options,
)
@click.option(
    "--tissue",
    metavar="FILE",
    help="Mask image or GeoJSON file that marks the tissue, where the manifest has none.",
)
@combine(
    no_tissue_option("Take whole slides, glass too, where the manifest says nothing of tissue."),
    artefacts_option,
    stain_normalization_option,
    manifest_options,
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="local: run processes on this machine. ray: run on a Ray cluster.",
)
@click.option(
    "--ray-address",
    default="auto",
    show_default=True,
    metavar="HOST:PORT",
    help="Address of the Ray cluster.",
)
@click.option(
    "--workers",
    type=WholeNumber(1),
    metavar="N",
    show_default="one for each device",
    help="Number of processes of the local engine.",
)
@shard_option("Segment every n-th slide from the i-th on, counted from 0; other runs do the rest.", "0/1")
@click.option("--redo", is_flag=True, help="Run slides again that were run with other settings.")
@click.option(
    "--keep-features",
    is_flag=True,
    help="Also keep the token features of every slide (bfloat16, zstd); their size is printed first.",
)
@click.option(
    "--features",
    metavar="PLACE",
    help="Place where a run with --keep-features kept features: segment from them, and open no slide.",
)
@click.option(
    "--from-h5",
    type=PATH,
    metavar="FOLDER",
    help="In place of MANIFEST: patch features of TRIDENT or CLAM (.h5), clustered by k-means, all slides "
    "together; --codebook takes the centres.safetensors of such a run.",
)
@combine(slides_folder_option, seed_option, batching_options, json_option)
@click.pass_context
def cohort(
    context: click.Context,
    /,
    manifest: str | None,
    output: str,
    split: str | None,
    sample_check: bool,
    engine: str,
    ray_address: str,
    workers: int | None,
    shard: tuple[int, int],
    redo: bool,
    keep_features: bool,
    features: str | None,
    names: Path | None,
    from_h5: Path | None,
    slides_folder: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Segment every slide of a cohort; run it again to go on where it stopped.

    MANIFEST is a CSV file with the columns slide_id and path, and if wanted mpp, series, tissue, site and
    split; or a folder, or a glob in quotes. Exit code 1 means that some slides failed: PLACE/failures.csv
    says why.
    """
    from fseg_jax.codebook import Codebook
    from fseg_jax.cohort.engines import Local, Ray
    from fseg_jax.cohort.job import Job, adopt_kept_settings
    from fseg_jax.cohort.manifest import load_manifest, select_split
    from fseg_jax.cohort.run import run_cohort
    from fseg_jax.files.paths import is_file
    from fseg_jax.methods import fseg
    from fseg_jax.outputs.cluster_names import load_names
    from fseg_jax.pipeline.plan import Settings

    if (manifest is None) == (from_h5 is None):
        raise InputError("give a MANIFEST, or a folder of patch features with --from-h5")
    if from_h5 is not None:
        chosen = {n for n in context.params if context.get_parameter_source(n) is not _DEFAULT}
        return _cluster_patches(from_h5, output, slides_folder, names, redo, chosen, as_json, options)
    assert manifest is not None
    if features is not None:
        fixed = [name for name in _FIXED_BY_FEATURES if context.get_parameter_source(name) is not _DEFAULT]
        if fixed:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in fixed)
            raise InputError(f"{given}: the features have that already; leave it out with --features")
    rows = load_manifest(
        manifest,
        sample_check=sample_check,
        slides_needed=features is None,
        mpp_override=options["mpp_override"],
        series=options["series"],
    )
    slides = select_split(rows, split, manifest)
    encoder, weights, dtype = (options.pop(name) for name in ("encoder", "weights", "dtype"))
    path = options.pop("codebook")
    book = Codebook.load(path, options["k"]) if path else None
    tissue, form = pop_tissue_setting(options), pop_form(options)
    if tissue not in ("find", "all"):
        if not is_file(tissue):
            raise InputError(f"--tissue {tissue}: no such file")
        tissue = str(Path(tissue).absolute())  # workers may be elsewhere
    values = {name: value for name, value in options.items() if value is not None}
    settings = Settings(**values, tissue=tissue, features="bfloat16")
    fseg.check_options(settings.mode, settings.resize)
    job = Job(
        out=output if "://" in output else str(Path(output)),
        encoder=choose_encoder(encoder, book),
        settings=settings,
        weights=str(weights) if weights else None,
        dtype=dtype,
        codebook=book,
        keep_features=keep_features,
        features=features,
        names=load_names(names) if names else None,
        form=form,
    )
    if features is not None:
        job = adopt_kept_settings(job)

    def tell(line: str) -> None:
        say(line, err=as_json)

    def tell_outcome(outcome: "Outcome") -> None:
        if as_json:
            click.echo(_encode_outcome(output, outcome))
            sys.stdout.flush()

    if book is None:
        tell(f"no --codebook: {_offer_fit(manifest, split, job)}")
    runner = Local(workers) if engine == "local" else Ray(ray_address, settings.threads or 2)
    summary = run_cohort(slides, job, runner, shard=shard, redo=redo, tell=tell, tell_outcome=tell_outcome)
    _conclude(summary.to_line(output), failed=bool(summary.failed), err=as_json)
    return 0 if summary.done == summary.slides else 1


def _conclude(line: str, *, failed: bool, err: bool) -> None:
    """Say how the run ended; that slides failed is an error, and said in any case."""
    if failed and is_quiet():
        click.echo(f"fseg: {line}", err=True)
    say(f"fseg: {line}", err=err)


def _encode_outcome(place: str, outcome: "Outcome") -> str:
    """Encode what became of a slide as a line of JSON."""
    from fseg_jax.cohort.records import parse_json, record_key, timing_key
    from fseg_jax.files.storage import open_storage

    name = outcome.slide_id
    if outcome.status == "failed":
        return encode_result(name, None, (), outcome.reason)
    files = open_storage(place).read_all([record_key(name), timing_key(name)])
    record = parse_json(files.get(record_key(name))) or {}
    timing = parse_json(files.get(timing_key(name))) or {}
    return encode_result(name, {**record, **timing}, _list_outputs(place, name))


def _cluster_patches(
    folder: Path,
    output: str,
    slides: Path | None,
    names: Path | None,
    redo: bool,
    chosen: set[str],
    as_json: bool,
    options: dict[str, Any],
) -> int:
    """Cluster the patches of a folder of HDF5 files, and return the exit code."""
    from fseg_jax.cohort.patch_clusters import (
        PatchClusterSettings,
        check_bucket,
        cluster_patch_files,
        publish_patch_clusters,
    )
    from fseg_jax.outputs.cluster_names import load_names

    if other := sorted(chosen - _FOR_PATCHES):
        option = other[0].replace("_", "-")
        raise InputError(f"--{option}: is not for patch features; leave it out with --from-h5")
    settings = PatchClusterSettings(
        k=options["k"] or PatchClusterSettings.k,
        centres=options["codebook"],
        slides=slides,
        mpp_override=options["mpp_override"],
        names=load_names(names) if names else None,
        form=pop_form(options),
        seed=options["seed"],
    )

    def tell_outcome(name: str, record: dict[str, Any] | None, reason: str) -> None:
        if as_json:
            click.echo(encode_result(name, record, _list_outputs(output, name), reason))

    def run(place: Path) -> "PatchClusterSummary":
        return cluster_patch_files(
            folder,
            place,
            settings,
            overwrite=redo,
            tell=lambda line: say(line, err=as_json),
            tell_outcome=tell_outcome,
        )

    if "://" in output:
        if not redo:
            check_bucket(folder, output)
        with TemporaryDirectory() as place:
            summary = run(Path(place))
            publish_patch_clusters(Path(place), summary.areas_mm2, output)
    else:
        summary = run(Path(output))
    done = len(summary.areas_mm2)
    failures = f", {len(summary.failed)} failed ({output}/failures.csv says why)" if summary.failed else ""
    _conclude(
        f"{done} of {done + len(summary.failed)} slides done{failures}",
        failed=bool(summary.failed),
        err=as_json,
    )
    return 1 if summary.failed else 0


def _list_outputs(place: str, name: str) -> list[str]:
    from fseg_jax.pipeline.segment import SUFFIXES

    return [f"{place}/{name}{suffix}" for suffix in SUFFIXES]


def _offer_fit(manifest: str, split: str | None, job: "Job") -> str:
    """Say what clusters without a codebook are, and how to make one of the same slides."""
    from fseg_jax.codebook import SHIPPED

    options = ["-o", "codebook.safetensors", "--encoder", job.encoder]
    options += ["--weights", job.weights] if job.weights else []
    options += ["--split", split] if split else []
    settings = job.settings
    options += ["--k", str(settings.k)]
    options += [] if settings.mpp is None else ["--mpp", f"{settings.mpp:g}"]
    options += [] if settings.mpp_override is None else ["--mpp-override", f"{settings.mpp_override:g}"]
    options += [] if settings.frame == "bounds" else ["--frame", settings.frame]
    options += [] if settings.series is None else ["--series", str(settings.series)]
    options += ["--no-tissue"] if settings.tissue == "all" else []
    shipped = f" (or --codebook {SHIPPED}, which is there)" if job.encoder == SHIPPED else ""
    return (
        "each slide is clustered by itself, and cluster 1 of one is not cluster 1 of another; for clusters "
        f"that mean the same on all, stop and run: {shlex.join(['fseg', 'fit', manifest, *options])}; "
        f"then add --codebook codebook.safetensors{shipped}"
    )
