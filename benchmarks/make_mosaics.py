"""Build slides with known borders from real tiles: a mosaic of EBHI-Seg for each case that has both kinds.

    FSEG_DATA=/path/to/data python -m benchmarks.make_mosaics OUT

``$FSEG_DATA/ebhi`` holds EBHI-Seg (Shi et al. 2023, figshare 21540159, CC BY 4.0) as CLASS/images. OUT is
laid out as DigestPath is: ``tissue-train-pos/mosaic-CASE.tif`` with ``mosaic-CASE_mask.png``, 255 where the
tumour is.

A slide is one case, so that laboratory and stain tell little of the tissue (photographs of one case differ,
too): its malignant tiles (adenocarcinoma, high-grade neoplasia) fill one wavy region, its benign ones
(normal, polyp, low-grade neoplasia, serrated adenoma) the rest of a wavy piece of tissue on glass. Tiles are
turned, mirrored and repeated until it is full. The regions' shares of the tissue go from 3 % to 60 % over the
slides in equal ratios, dealt at random. EBHI-Seg does not say its µm per pixel: 0.5 is written, at which a
tile is a little less than the paper's patch of 256 pixels.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import tifffile
from PIL import Image

from benchmarks.examples import examples

MALIGNANT = ("Adenocarcinoma", "High-grade_IN")
BENIGN = ("Normal", "Polyp", "Low-grade_IN", "Serrated_adenoma")
MPP = 0.5
SHARES = (0.03, 0.6)
_GLASS = 243
_EDGE = 2  # pixels of each tile's edge that are left out: the outermost are dark
_TILE = 224 - 2 * _EDGE


class Case(NamedTuple):
    """One case's tiles of both kinds."""

    name: str
    benign: tuple[Path, ...]
    malignant: tuple[Path, ...]


def cases(ebhi: Path, fewest: int) -> list[Case]:
    """The cases that have at least so many tiles of each kind, by name."""
    tiles: dict[str, tuple[list[Path], list[Path]]] = {}
    for kind, classes in enumerate((BENIGN, MALIGNANT)):
        for path in sorted(path for c in classes for path in (ebhi / c / "images").iterdir()):
            # The number is the case, whatever letters go before it.
            number = re.sub(r"^GT[A-Za-z]*", "", path.name).split("-")[0]
            tiles.setdefault(number, ([], []))[kind].append(path)
    return [
        Case(name, tuple(benign), tuple(malignant))
        for name, (benign, malignant) in sorted(tiles.items())
        if min(len(benign), len(malignant)) >= fewest
    ]


def write_mosaics(
    ebhi: Path, out: Path, *, size: tuple[int, int] = (2560, 3584), fewest: int = 4, seed: int = 0
) -> Iterator[Path]:
    """Write every case's slide and mask, and yield the slides' paths. The seed decides everything."""
    found = cases(ebhi, fewest)
    if not found:
        raise click.UsageError(f"{ebhi}: no case has {fewest} tiles of each kind")
    folder = out / "tissue-train-pos"
    folder.mkdir(parents=True, exist_ok=True)
    shares = np.random.default_rng(seed).permutation(np.geomspace(*SHARES, len(found)))
    for case, share in zip(found, shares.tolist(), strict=True):
        image, mask = mosaic(case, size, share, np.random.default_rng([seed, int(case.name)]))
        path = folder / f"mosaic-{case.name}.tif"
        Image.fromarray(mask).save(path.with_name(f"{path.stem}_mask.png"))
        tifffile.imwrite(
            path,
            image,
            tile=(256, 256),
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": 92},
            resolution=(10_000 / MPP, 10_000 / MPP),
            resolutionunit="CENTIMETER",
            metadata=None,
        )
        yield path


def mosaic(
    case: Case, size: tuple[int, int], share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A slide, uint8 (height, width, 3), and its mask, uint8 (height, width), 255 where the tumour is.

    The tumour is ``share`` of the tissue, to a pixel's row.
    """
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    middle, half = np.array(size) / 2, np.array(size) / 2
    tissue = _distance(y, x, middle, half * 0.8, rng) < 1
    centre = middle + rng.uniform(-0.45, 0.45, 2) * half
    radii = np.exp(rng.uniform(-0.25, 0.25)) ** np.array([1, -1])
    distance = np.where(tissue, _distance(y, x, centre, radii, rng), np.inf)
    # The distance that so much of the tissue is nearer than.
    wanted = max(1, round(share * int(tissue.sum())))
    tumour = distance <= np.partition(distance.reshape(-1), wanted - 1)[wanted - 1]
    image = np.where(tumour[..., None], _fill(case.malignant, size, rng), _fill(case.benign, size, rng))
    image[~tissue] = _GLASS
    return image, np.where(tumour, 255, 0).astype(np.uint8)


def _distance(
    y: np.ndarray, x: np.ndarray, centre: np.ndarray, radii: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """How far pixels are from a centre, in units of a wavy ellipse's radius there."""
    dy, dx = (y - centre[0]) / radii[0], (x - centre[1]) / radii[1]
    angle = np.arctan2(dy, dx)
    wave = sum(
        height * np.sin(n * angle + rng.uniform(0, 2 * np.pi))
        for n, height in ((2, 0.08), (3, 0.06), (5, 0.04), (9, 0.02))
    )
    return np.asarray(np.hypot(dy, dx) * (1 + wave))


def _fill(tiles: tuple[Path, ...], size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A picture full of tiles in random order and orientation, each used as often as any other."""
    inside = slice(_EDGE, -_EDGE)
    images = [np.asarray(Image.open(path).convert("RGB"))[inside, inside] for path in tiles]
    rows, columns = (-(-side // _TILE) for side in size)
    order = np.concatenate([rng.permutation(len(images)) for _ in range(-(-rows * columns // len(images)))])
    out = np.empty((rows * _TILE, columns * _TILE, 3), np.uint8)
    for cell in range(rows * columns):
        tile = np.rot90(images[order[cell]], int(rng.integers(4)))
        tile = tile[:, ::-1] if rng.integers(2) else tile
        top, left = cell // columns * _TILE, cell % columns * _TILE
        out[top : top + _TILE, left : left + _TILE] = tile
    return out[: size[0], : size[1]]


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--fewest", default=4, show_default=True, type=click.IntRange(1), help="tiles of each kind")
@click.option("--seed", default=0, show_default=True, help="of everything drawn at random")
def main(out: Path, fewest: int, seed: int) -> None:
    """Write a mosaic slide with its mask to OUT for every case of EBHI-Seg that has both kinds of tile."""
    for path in write_mosaics(examples() / "ebhi", out, fewest=fewest, seed=seed):
        click.echo(path)


if __name__ == "__main__":
    main()
