"""``fseg embed`` and ``fseg seed``."""

import glob
from pathlib import Path
from typing import Any

import click

from fseg_jax.cli.options import (
    PATH,
    SLIDE,
    anndata_option,
    batching_options,
    classes_option,
    combine,
    distance_option,
    encoder_options,
    form_options,
    h5_options,
    json_option,
    output_option,
    overwrite_option,
    patch_options,
    pop_form,
    pop_tissue_setting,
    seed_option,
    tissue_options,
)
from fseg_jax.cli.progress import show_progress
from fseg_jax.cli.terminal import encode_result, tolerate_failure


@click.command()
@click.argument("slides", nargs=-1, required=True, type=SLIDE, metavar="SLIDE...")
@combine(output_option(), encoder_options, patch_options, tissue_options)
@click.option(
    "--store",
    "stored_dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Number type in which embeddings are stored.",
)
@click.option(
    "--h5",
    is_flag=True,
    help="Also write HDF5 (NAME.embeddings.h5) as TRIDENT does, for MIL programs.",
)
@combine(batching_options, anndata_option, json_option, overwrite_option)
def embed(
    slides: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    anndata: bool,
    h5: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Embed a slide's patches, once, so that clicks can cluster them in an instant (then: fseg seed)."""
    from fseg_jax.encoders.load import load_encoder
    from fseg_jax.pipeline.embed import PatchSettings, embed_slide
    from fseg_jax.slides.dicom_series import merge_series
    from fseg_jax.slides.reader import name_outputs, open_slide

    paths = merge_series(slides)
    done = 0
    with show_progress(len(paths)) as display:
        display.note("loading the encoder")
        encoder = load_encoder(
            options.pop("encoder"), weights=options.pop("weights"), dtype=options.pop("dtype"), last=True
        )
        settings = PatchSettings(
            dtype=options.pop("stored_dtype"), tissue=pop_tissue_setting(options), **options
        )
        for path in paths:

            def report(reason: str, name: str = name_outputs(path)) -> None:
                if as_json:
                    display.print(encode_result(name, None, (), reason))

            with tolerate_failure(paths, f"embedding {path}", report):
                with open_slide(
                    path, settings.mpp_override, frame=settings.frame, series=settings.series
                ) as slide:
                    record = embed_slide(
                        slide,
                        output,
                        encoder,
                        settings,
                        anndata=anndata,
                        h5=h5,
                        overwrite=overwrite,
                        progress=display.begin(slide.name),
                    )
                done += 1
                stem = output / f"{slide.name}.embeddings"
                written = [f"{stem}{suffix}" for suffix in _suffix_embeddings(anndata=anndata, h5=h5)]
                display.print(encode_result(slide.name, record, written) if as_json else written[1])
    return 0 if done == len(paths) else 2


def _suffix_embeddings(*, anndata: bool, h5: bool) -> list[str]:
    return [".json", ".zarr", *([".h5ad"] if anndata else []), *([".h5"] if h5 else [])]


@click.command()
@click.argument("folder", type=PATH)
@click.argument("seeds", type=PATH)
@click.option("--slide", metavar="NAME", help="Slide to segment, where the folder holds several.")
@classes_option
@click.option(
    "--metric",
    default="f1",
    show_default=True,
    help="Agreement with the clicks to maximize: f1, accuracy or balanced-accuracy.",
)
@distance_option
@click.option("--hard", is_flag=True, help="Keep the labels of the seeds as they are.")
@click.option("--smooth", is_flag=True, help="Smooth the labels of neighbouring patches.")
@click.option(
    "--from-h5",
    type=PATH,
    metavar="FILE",
    help="Patch features of TRIDENT or CLAM (NAME.h5), taken into FOLDER in place of those of fseg embed.",
)
@combine(h5_options, seed_option, form_options, anndata_option, json_option, overwrite_option)
def seed(
    folder: Path,
    seeds: Path,
    slide: str | None,
    classes: str | None,
    metric: str,
    from_h5: Path | None,
    slides_folder: Path | None,
    mpp_override: float | None,
    anndata: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Segment an embedded slide from a few clicks: SEEDS is GeoJSON points, as QuPath exports them."""
    from fseg_jax.pipeline.clicks import SeedSettings, choose_slide, seed_slide
    from fseg_jax.pipeline.patch_import import take_patches

    form = pop_form(options)
    class_names = tuple(classes.split(",")) if classes else None
    settings = SeedSettings(class_names, metric, **options)
    if from_h5 is not None:
        take_patches(from_h5, folder, slides_folder, mpp_override, overwrite=overwrite)
        slide = from_h5.stem
    name = choose_slide(folder, slide)
    record = seed_slide(folder, seeds, settings, slide=name, anndata=anndata, form=form, overwrite=overwrite)
    paths = sorted(str(path) for path in folder.glob(f"{glob.escape(name)}.sic.*"))
    click.echo(encode_result(name, record, paths) if as_json else folder / f"{name}.sic.png")
