"""Options that several commands share, each said once."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fseg_jax.errors import InputError


def together(*decorators: Callable) -> Callable:
    def apply(function: Callable) -> Callable:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


class Number(click.ParamType):
    """A number from ``least`` to ``most``, or, with ``above`` and ``below``, between them; "nan" is none."""

    name = "number"

    def __init__(self, least: float, most: float, *, above: bool = False, below: bool = False) -> None:
        self._least, self._most, self._above, self._below = least, most, above, below

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        large = number > self._least if self._above else number >= self._least
        small = number < self._most if self._below else number <= self._most
        if not (large and small):
            first = f"{'above' if self._above else 'from'} {self._least:g}"
            last = f"{'below ' if self._below else ''}{self._most:g}"
            self.fail(f"{str(value)[:40]!r}: give a number {first} to {last}", param, ctx)
        return number


class Whole(click.ParamType):
    """A whole number from ``least`` to ``most``."""

    name = "number"

    def __init__(self, least: int, most: int = 10**9) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self._least - 1
        if not self._least <= number <= self._most:
            range_ = f"{self._least} or more" if self._most == 10**9 else f"{self._least} to {self._most}"
            self.fail(f"{str(value)[:40]!r}: give a whole number, {range_}", param, ctx)
        return number


MICRONS = Number(1e-3, 1e4)  # per pixel
RATE = Number(0, 1, above=True, below=True)
SHARE = Number(0, 1)


class Shard(click.ParamType):
    """``i/n`` as two numbers: the share that is every n-th slide from the i-th on."""

    name = "i/n"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        i, _, n = str(value).partition("/")
        if not (i.isdecimal() and n.isdecimal() and len(n) <= 9 and len(i) <= 9 and int(i) < int(n)):
            said = "give i/n, counted from 0: 0/4, 1/4, 2/4 and 3/4 are all of four"
            self.fail(f"{str(value)[:40]}: {said}", param, ctx)
        return int(i), int(n)


output_option = click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where results go.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace results that exist.")
encoder_options = together(
    click.option("--encoder", default="he-small", show_default=True, metavar="NAME", help="Which encoder."),
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Its weights, instead of the hub's.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help="Precision of its products; sums are float32.",
    ),
)
method_options = together(
    click.option(
        "--codebook",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Cluster centres, from fit or import.",
    ),
    click.option(
        "--k",
        type=Whole(1),
        metavar="K",
        help="Clusters: which of the codebook's, or how many to fit (8).",
    ),
    click.option(
        "--mode",
        type=click.Choice(["fixed", "assign"]),
        default="fixed",
        show_default=True,
        help="Concepts fixed to the centres, or factorized a tile and named by them.",
    ),
    click.option(
        "--concepts",
        type=Whole(1),
        default=20,
        show_default=True,
        help="Concepts a tile, in mode assign.",
    ),
    click.option(
        "--resize",
        type=click.Choice(["bilinear", "nearest"]),
        default="bilinear",
        show_default=True,
        help="Resize the weights and then label, or resize the labels.",
    ),
)
where_options = together(
    click.option("--tissue", metavar="FILE", help="Where the tissue is: a mask image or GeoJSON."),
    click.option("--no-tissue", is_flag=True, help="Take everything, glass too."),
    click.option(
        "--mpp-override", type=MICRONS, metavar="µM", help="The slide's µm per pixel, whatever it says."
    ),
)
tiling_options = together(
    click.option(
        "--mpp",
        type=MICRONS,
        metavar="µM",
        help="Work at this resolution (the codebook's, or the encoder's).",
    ),
    click.option("--tile", type=Whole(1), metavar="PIXELS", help="Side of a tile (the encoder's own)."),
    click.option(
        "--halo",
        type=Number(0, 0.25),
        default=1 / 16,
        metavar="FRACTION",
        help="Overlap on each side, of the tile (1/16).",
    ),
)
patch_options = together(
    click.option("--patch", type=Whole(1), default=256, show_default=True, help="Side of a patch, pixels."),
    click.option(
        "--overlap",
        type=Number(0, 1, below=True),
        default=0.5,
        show_default=True,
        help="Of neighbouring patches.",
    ),
    click.option(
        "--mpp", type=MICRONS, default=0.5, show_default=True, metavar="µM", help="Work at this resolution."
    ),
    click.option(
        "--min-tissue",
        type=SHARE,
        default=0.25,
        show_default=True,
        help="Share of a patch that must be tissue.",
    ),
)
batching_options = together(
    click.option(
        "--batch",
        type=Whole(1),
        default=8,
        show_default=True,
        help="Images the encoder takes at once.",
    ),
    click.option("--threads", type=Whole(1, 1024), default=2, show_default=True, help="Threads that decode."),
)
seed_option = click.option(
    "--seed",
    type=Whole(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Of everything drawn at random.",
)
anndata_option = click.option(
    "--anndata", is_flag=True, help="Also write AnnData (.h5ad), for scanpy and squidpy."
)


def tissue_setting(options: dict[str, Any]) -> str:
    """What --tissue and --no-tissue say, as settings have it; both are taken out of the options."""
    tissue, everything = options.pop("tissue", None), options.pop("no_tissue", False)
    if tissue and everything:
        raise InputError("--tissue and --no-tissue contradict each other: give one of them")
    return "all" if everything else tissue or "find"
