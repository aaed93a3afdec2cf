"""Make slides with known borders of tissue: a mosaic of EBHI-Seg's tiles for each case with both kinds.

    FSEG_DATA=/path/to/data python -m benchmarks.make_mosaics OUT

``$FSEG_DATA/ebhi`` holds EBHI-Seg (Shi et al. 2023, figshare 21540159, CC BY 4.0) as CLASS/images. OUT is
laid out like DigestPath: ``tissue-train-pos/mosaic-CASE.tif`` with ``mosaic-CASE_mask.png``, 255 in the
tumour.

A slide has tiles of one case, so that laboratory and stain reveal little about the tissue (photographs of one
case still differ). Malignant tiles (adenocarcinoma, high-grade neoplasia) fill one wavy region; benign ones
(normal, polyp, low-grade neoplasia, serrated adenoma) fill the rest of a wavy piece of tissue on glass. Tiles
are turned, mirrored and repeated to fill it. The tumour's share of the tissue goes from 3 % to 60 % over the
slides in equal ratios, in random order. EBHI-Seg has no µm per pixel: 0.5 is written, at which a tile is a
little smaller than the paper's patch of 256 pixels.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import tifffile
from PIL import Image

from benchmarks.examples import find_examples

MALIGNANT = ("Adenocarcinoma", "High-grade_IN")
BENIGN = ("Normal", "Polyp", "Low-grade_IN", "Serrated_adenoma")
MPP = 0.5
SHARES = (0.03, 0.6)
_GLASS = 243
_EDGE = 2  # pixels cut from each side of a tile: the outermost are dark
_TILE = 224 - 2 * _EDGE


class Case(NamedTuple):
    """A case and the files of its tiles."""

    name: str
    benign: tuple[Path, ...]
    malignant: tuple[Path, ...]


def find_cases(ebhi: Path, fewest: int) -> list[Case]:
    """Find the cases with at least ``fewest`` tiles of each kind, in order of their names."""
    tiles: dict[str, tuple[list[Path], list[Path]]] = {}
    for kind, classes in enumerate((BENIGN, MALIGNANT)):
        for path in sorted(path for c in classes for path in (ebhi / c / "images").iterdir()):
            # GT1-…, GTXC1-… and so on are of case 1.
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
    """Write the slide and mask of every case; yield the paths of the slides.

    Raises:
        click.UsageError: no case has ``fewest`` tiles of each kind.
    """
    cases = find_cases(ebhi, fewest)
    if not cases:
        raise click.UsageError(f"{ebhi}: no case has {fewest} tiles of each kind")
    folder = out / "tissue-train-pos"
    folder.mkdir(parents=True, exist_ok=True)
    shares = np.random.default_rng(seed).permutation(np.geomspace(*SHARES, len(cases)))
    for case, share in zip(cases, shares.tolist(), strict=True):
        image, mask = draw_mosaic(case, size, share, np.random.default_rng([seed, int(case.name)]))
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


def draw_mosaic(
    case: Case, size: tuple[int, int], share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a slide, uint8 (height, width, 3), and its mask, uint8 (height, width), 255 in the tumour.

    The tumour is ``share`` of the tissue.
    """
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    middle, half = np.array(size) / 2, np.array(size) / 2
    tissue = _measure_distance(y, x, middle, half * 0.8, rng) < 1
    centre = middle + rng.uniform(-0.45, 0.45, 2) * half
    radii = np.exp(rng.uniform(-0.25, 0.25)) ** np.array([1, -1])
    distance = np.where(tissue, _measure_distance(y, x, centre, radii, rng), np.inf)
    # The tumour is the pixels of tissue nearest to its centre, as many as its share asks for.
    area = max(1, round(share * int(tissue.sum())))
    tumour = distance <= np.partition(distance.reshape(-1), area - 1)[area - 1]
    image = np.where(tumour[..., None], _fill(case.malignant, size, rng), _fill(case.benign, size, rng))
    image[~tissue] = _GLASS
    return image, np.where(tumour, 255, 0).astype(np.uint8)


def _measure_distance(
    y: np.ndarray, x: np.ndarray, centre: np.ndarray, radii: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Measure how far pixels are from a centre, in radii of a wavy ellipse."""
    dy, dx = (y - centre[0]) / radii[0], (x - centre[1]) / radii[1]
    angle = np.arctan2(dy, dx)
    wave = sum(
        height * np.sin(n * angle + rng.uniform(0, 2 * np.pi))
        for n, height in ((2, 0.08), (3, 0.06), (5, 0.04), (9, 0.02))
    )
    return np.asarray(np.hypot(dy, dx) * (1 + wave))


def _fill(tiles: tuple[Path, ...], size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Fill a picture with tiles in random order and orientation, each used equally often."""
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
    for path in write_mosaics(find_examples() / "ebhi", out, fewest=fewest, seed=seed):
        click.echo(path)


if __name__ == "__main__":
    main()
