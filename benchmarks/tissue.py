"""Measure how well tissue is found, on generated slides whose tissue is known.

    [FSEG_DATA=...] python -m benchmarks.tissue [SCENE …] [--mpp 8] [--pictures FOLDER] [--name NAME]

Every scene is composed in optical density at 2 µm a pixel: a piece of tissue with an irregular outline and
lumens, whose texture is that of real regions (of scikit-image's example where ``FSEG_DATA`` is not set), on
glass with one difficulty: haze, an uneven lamp, stripes, ink, a coverslip, bubbles, what was not scanned. It
is then reduced to 8 and to 4 µm a pixel, as a scanner's pyramid is, with noise. What a finder calls tissue is
compared with the truth at 2 µm:

- *glass*: the share of what is called tissue that is none.
- *missed*: the share of the tissue that is not called tissue.
- *border*: the mean distance between the two borders in µm, from each to the other, distances capped at
  100 µm; the frame of the picture is no border.

Gaps of the texture itself and the rim of ink on tissue count neither way. A result is kept as
``results/tissue_NAME.json`` where ``--name`` is given; the page ``results/tissue.md`` sets all that are kept
side by side.
"""

import json
import os
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage import data as examples
from skimage import draw

from benchmarks.measure import RESULTS, describe_machine
from fseg_jax.slides.reader import open_slide
from fseg_jax.slides.tissue_segmentation import segment_tissue

FINE = 2  # µm a pixel of the composition and of the truth
CAP = 100.0  # µm, the largest distance between borders that is counted
RIM = 16.0  # µm on either side of ink over tissue that count neither way
SHAPE = (1280, 1600)  # pixels of 2 µm: 2.6 mm × 3.2 mm
GLASS = (243, 243, 244)
EOSIN, HAEMATOXYLIN, DAB = (0.2, 1.0, 0.4), (1.0, 0.85, 0.45), (0.35, 0.7, 1.0)  # strongest channel 1
PENS = {
    "green": (60, 150, 90),
    "blue": (50, 70, 170),
    "black": (30, 30, 32),
    "red": (200, 40, 50),
    "purple": (110, 50, 140),
    "orange": (190, 110, 40),
}

Plane = Float[np.ndarray, "height width"]
Colours = Float[np.ndarray, "height width 3"]
Mask = Bool[np.ndarray, "height width"]


class Truth(NamedTuple):
    """A scene at one resolution.

    Attributes:
        image: uint8 (h, w, 3).
        mpp: µm per pixel.
        tissue: bool (H, W), the truth at 2 µm a pixel.
        counted: bool (H, W), where the truth is certain.
        artefact: bool (H, W), folded or blurred tissue.
    """

    image: UInt8[np.ndarray, "h w 3"]
    mpp: float
    tissue: Mask
    counted: Mask
    artefact: Mask


class Score(NamedTuple):
    """How a mask compares with the truth: two shares of 1, and µm (``nan`` where a border is missing)."""

    glass: float
    missed: float
    border: float


class Scene:
    """A slide in the making, at 2 µm a pixel.

    Attributes:
        random: The scene's own generator.
        tissue: The truth.
        counted: Where the truth is certain.
        artefact: Folded or blurred tissue.
        density: Optical density of everything on the glass.
        light: The light that the glass lets through, in grey levels.
        noise: Standard deviation of the sensor's noise in grey levels, per pixel of the result.
        finish: What is done to the result in grey levels, given it and its µm per pixel.
    """

    def __init__(self, name: str, shape: tuple[int, int]) -> None:
        self.random = np.random.default_rng(zlib.crc32(name.encode()))
        self.shape = shape
        self.tissue: Mask = np.zeros(shape, bool)
        self.counted: Mask = np.ones(shape, bool)
        self.artefact: Mask = np.zeros(shape, bool)
        self.density: Colours = np.zeros((*shape, 3), np.float32)
        self.light: Colours = np.ones((*shape, 3), np.float32) * np.asarray(GLASS, np.float32)
        self.noise = 0.8
        self.finish: list[Callable[[Colours, float], None]] = []

    def smooth(self, micrometres: float) -> Plane:
        """Draw a smooth random field of that scale, mean 0 and standard deviation 1."""
        coarse = max(1, int(micrometres / FINE / 4))
        small = [s // coarse + 9 for s in self.shape]
        field = ndimage.gaussian_filter(self.random.normal(size=small), micrometres / FINE / coarse)
        field = _enlarge(field, coarse)[: self.shape[0], : self.shape[1]]
        return np.asarray((field - field.mean()) / field.std(), np.float32)

    def add_piece(
        self,
        texture: Colours,
        strength: float = 1.0,
        centre: tuple[float, float] = (0.5, 0.42),
        radius: float = 0.33,
        lumens: int = 4,
        colour: tuple[float, float, float] | None = None,
    ) -> Mask:
        """Lay a piece of tissue on the glass, of a texture's density times ``strength``, and return it."""
        height, width = self.shape
        y, x = np.mgrid[:height, :width].astype(np.float32)
        dy, dx = y - centre[0] * height, x - centre[1] * width
        angle = np.arctan2(dy, dx)
        outline = np.full(self.shape, radius * height, np.float32)
        for k in range(2, 9):
            a, b = self.random.normal(scale=0.12 / k, size=2)
            outline += radius * height * (a * np.cos(k * angle) + b * np.sin(k * angle))
        where = outline - np.hypot(dy, dx) + 8 * self.smooth(30) + 4 * self.smooth(12) > 0
        for _ in range(lumens):
            r = self.random.uniform(50, 150) / FINE  # 100 to 300 µm across
            phi, rho = self.random.uniform(0, 2 * np.pi), self.random.uniform(0.1, 0.65) * radius * height
            hole = np.hypot(dy - rho * np.sin(phi), dx - rho * np.cos(phi)) < r + 4 * self.smooth(24)
            where &= ~hole
        where = _largest(where)
        self.add_tissue(where, texture, strength, colour)
        return where

    def add_tissue(
        self,
        where: Mask,
        texture: Colours,
        strength: float = 1.0,
        colour: tuple[float, float, float] | None = None,
    ) -> None:
        """Lay tissue on the glass; gaps of the texture of 16 µm or more count neither way."""
        texture = _tile(texture, self.shape)
        gap = ndimage.uniform_filter(texture.max(axis=-1), 12) < 0.08
        self.counted &= ~(where & ndimage.binary_dilation(gap, iterations=6))
        if colour is not None:
            texture = texture.mean(axis=-1, keepdims=True) * np.asarray(colour, np.float32)
        soft = ndimage.gaussian_filter(where.astype(np.float32), 0.7)
        self.density += strength * texture * soft[..., None]
        self.tissue |= where

    def add_haze(self, amplitude: float, reach: float, where: Mask | None = None) -> None:
        """Spread eosin over the glass: densest at the tissue, falling off, mottled; also in clouds."""
        near = self.tissue if where is None else where
        distance = ndimage.distance_transform_edt(~near[::4, ::4]) * 4 * FINE
        falloff = _enlarge(np.exp(-distance / reach), 4)[: self.shape[0], : self.shape[1]]
        cloud = np.clip(0.5 + 0.5 * self.smooth(300), 0, 1.5)
        haze = amplitude * (0.7 * falloff + 0.3 * cloud) * (1 + 0.06 * self.smooth(60))
        self.density += np.maximum(haze, 0)[..., None].astype(np.float32) * np.asarray(EOSIN, np.float32)

    def draw_pen(self, colour: tuple[int, int, int], points: list[tuple[float, float]], wide: float) -> None:
        """Draw a translucent stroke through points (shares of height and width), ``wide`` µm."""
        layer = Image.new("L", self.shape[::-1], 0)
        line = [(x * self.shape[1], y * self.shape[0]) for y, x in points]
        pen = draw_line(layer, line, round(wide / FINE))
        ink = ndimage.gaussian_filter(pen, 12 / FINE)
        streaks = 1 + 0.06 * self.smooth(50)
        density = np.log10(np.asarray(GLASS, np.float32) / np.asarray(colour, np.float32))
        self.density += (ink * streaks)[..., None] * density
        over = ink > 0.3
        self.counted &= ~(_near(over, RIM) & ~(_erode(over, RIM)) & _near(self.tissue, RIM))
        self.tissue &= ~over

    def render(self, mpp: int) -> Truth:
        """Reduce the slide to ``mpp`` µm a pixel, add the sensor's noise and round."""
        step = mpp // FINE
        h, w = (s // step for s in self.shape)
        image = self.light * 10.0**-self.density
        image = image[: h * step, : w * step].reshape(h, step, w, step, 3).mean(axis=(1, 3))
        random = np.random.default_rng(mpp)
        image += random.normal(size=(h, w, 1)) * self.noise + random.normal(size=(h, w, 3)) * 0.3
        for act in self.finish:
            act(image, mpp)
        cut = np.s_[: h * step, : w * step]
        image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        return Truth(image, float(mpp), self.tissue[cut], self.counted[cut], self.artefact[cut])


def draw_line(layer: Image.Image, points: list[tuple[float, float]], pixels: int) -> Plane:
    """Draw a line with round ends into an image of bytes: float32 (h, w), 1 on the line."""
    pen = ImageDraw.Draw(layer)
    pen.line(points, fill=255, width=pixels, joint="curve")
    for x, y in points:
        pen.ellipse((x - pixels / 2, y - pixels / 2, x + pixels / 2, y + pixels / 2), fill=255)
    return np.asarray(layer, np.float32) / 255


# Textures: optical densities at 2 µm a pixel.


@cache
def real_textures() -> dict[str, NDArray[np.float32]]:
    """Read regions of real tissue as optical densities at 2 µm a pixel."""
    folder = os.environ.get("FSEG_DATA")
    if not folder:
        image = np.asarray(examples.immunohistochemistry(), np.float32)
        # Half of it is paler than tissue usually is.
        texture = _reduce_to_density(image, 2) + 0.15 * np.asarray(HAEMATOXYLIN, np.float32)
        return dict.fromkeys(("tumour", "stroma", "mixed", "oral", "section"), texture)
    root = Path(folder)
    sources = {
        "tumour": (root / "bcss_tumour/images/1008.jpg", 8, None),
        "stroma": (root / "bcss_tumour/images/1015.jpg", 8, None),
        "mixed": (root / "bcss_tumour/images/1019.jpg", 8, None),
        "oral": (root / "oral_originals/OSCC_400x_1.jpg", 8, None),
        "section": (root / "slides/TCGA-CR-7395-01A-01-TS1.svs", 1, (1300, 2100, 900, 1900)),
    }
    textures = {}
    for name, (path, step, box) in sources.items():
        if path.suffix == ".svs":
            with open_slide(path, 2.0) as slide:
                y0, y1, x0, x1 = box or (0, slide.height, 0, slide.width)
                image = np.asarray(slide.read(y0, x0, y1 - y0, x1 - x0, 2.0), np.float32)
        else:
            image = np.asarray(Image.open(path).convert("RGB"), np.float32)
        textures[name] = _reduce_to_density(image, step)
    return textures


def _reduce_to_density(image: Colours, step: int) -> Colours:
    h, w = (s // step for s in image.shape[:2])
    image = image[: h * step, : w * step].reshape(h, step, w, step, 3).mean(axis=(1, 3))
    return np.asarray(np.maximum(np.log10(243 / np.clip(image, 1, 243)), 0), np.float32)


def fat_texture(random: np.random.Generator, shape: tuple[int, int]) -> Colours:
    """Draw fat cells 60 to 90 µm across with thin pink walls."""
    height, width = shape
    spacing = 75 / FINE
    y, x = np.mgrid[0 : height + spacing : spacing, 0 : width + spacing : spacing]
    seeds = np.stack([y.ravel(), x.ravel()], 1) + random.uniform(-12, 12, size=(y.size, 2))
    marks = np.ones(shape, bool)
    inside = np.clip(np.rint(seeds).astype(int), 0, np.array(shape) - 1)
    marks[inside[:, 0], inside[:, 1]] = False
    rows, columns = ndimage.distance_transform_edt(marks, return_distances=False, return_indices=True)
    cell = rows * width + columns
    wall = np.zeros(shape, bool)
    wall[:-1] |= cell[:-1] != cell[1:]
    wall[:, :-1] |= cell[:, :-1] != cell[:, 1:]
    wall = ndimage.binary_dilation(wall)
    soft = 0.35 * ndimage.gaussian_filter(wall.astype(np.float32), 0.8)[..., None]
    return np.asarray(soft * np.asarray(EOSIN, np.float32))


def mucus_texture(scene: Scene) -> Colours:
    """Draw pale blue strands in a paler ground."""
    strands = np.exp(-np.abs(scene.smooth(24)) * 4) + 0.6 * np.exp(-np.abs(scene.smooth(14)) * 4)
    return np.asarray((0.05 + 0.09 * strands)[..., None] * HAEMATOXYLIN, np.float32)


# Scenes.


def _piece(scene: Scene, texture: str = "tumour", strength: float = 1.0, **more: Any) -> Mask:
    return scene.add_piece(real_textures()[texture], strength, **more)


def _stain(texture: str, strength: float, colour: tuple[float, float, float] | None = None) -> Any:
    def build(scene: Scene) -> None:
        _piece(scene, texture, strength, colour=colour)

    return build


def _haze(texture: str, strength: float, amplitude: float, reach: float) -> Any:
    def build(scene: Scene) -> None:
        _piece(scene, texture, strength)
        scene.add_haze(amplitude, reach)

    return build


def _lamp(colour: tuple[float, float, float], strength: float = 0.8) -> Any:
    def build(scene: Scene) -> None:
        _piece(scene, "stroma", strength)
        scene.light[:] = colour

    return build


def _pen(colour: str, across: bool) -> Any:
    def build(scene: Scene) -> None:
        _piece(scene, "mixed", 0.8)
        x = 0.42 if across else 0.88
        points = [(0.08, x - 0.02), (0.4, x + 0.03), (0.7, x - 0.03), (0.95, x)]
        scene.draw_pen(PENS[colour], points, 260)

    return build


def _gradient(scene: Scene) -> None:
    _piece(scene, "stroma", 0.6)
    scene.light *= np.linspace(0.85, 1.0, scene.shape[1], dtype=np.float32)[:, None]


def _vignetting(scene: Scene) -> None:
    _piece(scene, "stroma", 0.6)
    y, x = (np.linspace(-1, 1, s, dtype=np.float32) for s in scene.shape)
    scene.light *= (1 - 0.12 * (y[:, None] ** 2 + x**2))[..., None]


def _stripes(scene: Scene) -> None:
    _piece(scene, "tumour", 0.6)
    wide = 512 // FINE
    for i in range(0, scene.shape[1], wide):
        fall = 1 - 0.03 * np.linspace(0, 1, wide, dtype=np.float32)[: scene.shape[1] - i]
        scene.light[:, i : i + wide] *= (fall * scene.random.uniform(0.985, 1))[:, None]


def _coverslip(scene: Scene) -> None:
    _piece(scene, "mixed", 0.7, centre=(0.5, 0.38), radius=0.3)
    edge = round(0.8 * scene.shape[1])
    slope = (edge + 0.03 * np.arange(scene.shape[0])).astype(int)
    x = np.arange(scene.shape[1])
    line = np.abs(x - slope[:, None]) < 12 / FINE
    scene.density[line] += 0.18
    scene.density[x > slope[:, None]] += 0.012


def _shadow(scene: Scene) -> None:
    _piece(scene, "mixed", 0.7, centre=(0.5, 0.38), radius=0.3)
    y, x = np.mgrid[: scene.shape[0], : scene.shape[1]]
    deep = np.exp(-(((y - 600) / 500) ** 2 + ((x - 1350) / 150) ** 2))
    scene.density += (0.09 * deep)[..., None].astype(np.float32)


def _bubbles(scene: Scene) -> None:
    _piece(scene, "mixed", 0.7, centre=(0.5, 0.36), radius=0.28)
    y, x = np.mgrid[: scene.shape[0], : scene.shape[1]]
    for at, r in (((300, 1350), 180), ((900, 1380), 120), ((1150, 1150), 60)):
        ring = np.exp(-(((np.hypot(y - at[0], x - at[1]) - r) / (10 / FINE)) ** 2))
        scene.density += (0.5 * ring)[..., None].astype(np.float32)


def _dust(scene: Scene) -> None:
    _piece(scene, "tumour", 0.7)
    for _ in range(60):
        at = scene.random.integers(0, scene.shape)
        r = scene.random.uniform(4, 40) / FINE
        squeezed = r * scene.random.uniform(0.3, 1)
        rows, columns = draw.ellipse(at[0], at[1], r, squeezed, shape=scene.shape)
        outside = ~scene.tissue[rows, columns]
        shade = np.float32(scene.random.uniform(0.7, 1, 3) * scene.random.uniform(0.2, 0.8))
        scene.density[rows[outside], columns[outside]] += shade


def _unscanned(scene: Scene) -> None:
    _piece(scene, "section", 0.8)
    scene.light[:] = (238, 235, 237)

    def blank(image: Colours, mpp: float) -> None:
        h, w = image.shape[:2]
        image[: h // 8] = image[:, : w // 10] = image[-h // 6 :, -w // 3 :] = 255

    scene.finish.append(blank)
    h, w = scene.shape
    for cut in (np.s_[: h // 8], np.s_[:, : w // 10], np.s_[-h // 6 :, -w // 3 :]):
        scene.tissue[cut] = False


def _padding(scene: Scene) -> None:
    _piece(scene, "section", 0.8)

    def blank(image: Colours, mpp: float) -> None:
        h, w = image.shape[:2]
        image[: h // 10] = image[:, -w // 10 :] = 0

    scene.finish.append(blank)
    h, w = scene.shape
    for cut in (np.s_[: h // 10], np.s_[:, -w // 10 :]):
        scene.tissue[cut] = False


def _fluorescence(scene: Scene) -> None:
    where = _piece(scene, "mixed", 1.0)
    bright = scene.density[..., 1:2] * np.asarray((90, 330, 160), np.float32)
    scene.light[:] = 6 + bright * where[..., None]
    scene.density[:] = 0
    scene.noise = 2.0


def _fat(scene: Scene) -> None:
    scene.add_piece(fat_texture(scene.random, scene.shape), 1.0, lumens=0)
    scene.counted[:] = True
    rim = _near(scene.tissue, 40) & ~_erode(scene.tissue, 40)
    scene.counted &= ~rim  # an open cell at the border is glass as much as fat


def _mucus(scene: Scene) -> None:
    scene.add_piece(mucus_texture(scene), 1.0, lumens=0)


def _pale_beside_dark(scene: Scene) -> None:
    _piece(scene, "tumour", 1.2, centre=(0.5, 0.25), radius=0.22, lumens=2)
    _piece(scene, "stroma", 0.2, centre=(0.5, 0.7), radius=0.26, lumens=2)


def _pale_beside_dark_in_haze(scene: Scene) -> None:
    _pale_beside_dark(scene)
    scene.add_haze(0.08, 250)


def _fold(scene: Scene) -> None:
    where = _piece(scene, "mixed", 0.7, lumens=0)
    layer = Image.new("L", scene.shape[::-1], 0)
    line = [(x * scene.shape[1], y * scene.shape[0]) for y, x in ((0.3, 0.3), (0.5, 0.42), (0.72, 0.46))]
    band = draw_line(layer, line, 70 // FINE) * where
    scene.artefact = band > 0.5
    scene.density += scene.density * 1.2 * ndimage.gaussian_filter(band, 2)[..., None]


def _out_of_focus(scene: Scene) -> None:
    where = _piece(scene, "tumour", 0.8, lumens=0)
    near = np.zeros(scene.shape, np.float32)
    near[:, : int(0.36 * scene.shape[1])] = 1
    near = ndimage.gaussian_filter(near, 30)[..., None]
    light = 10.0**-scene.density
    blurred = np.stack([ndimage.gaussian_filter(light[..., c], 20 / FINE) for c in range(3)], axis=-1)
    scene.density = -np.log10(light * (1 - near) + blurred * near)
    scene.artefact = where & (near[..., 0] > 0.5)
    scene.counted &= ~(_near(where, 40) & ~_erode(where, 40) & (near[..., 0] > 0.05))


def _all_tissue(scene: Scene) -> None:
    scene.add_tissue(np.ones(scene.shape, bool), real_textures()["tumour"], 0.8)


def _all_pale_tissue(scene: Scene) -> None:
    scene.add_tissue(np.ones(scene.shape, bool), real_textures()["stroma"], 0.35)


def _all_glass(scene: Scene) -> None:
    pass


def _all_haze(scene: Scene) -> None:
    scene.add_haze(0.12, 300, np.eye(*scene.shape, dtype=bool))


def _all_ink(scene: Scene) -> None:
    scene.draw_pen(PENS["blue"], [(0.0, 0.5), (1.0, 0.5)], 2 * FINE * scene.shape[1])


SCENES: dict[str, Callable[[Scene], None]] = {
    "strong": _stain("tumour", 1.3),
    "usual": _stain("mixed", 0.8),
    "pale": _stain("tumour", 0.35),
    "very pale": _stain("stroma", 0.18),
    "very pale pink": _stain("mixed", 0.15, EOSIN),
    "pale blue counterstain": _stain("oral", 0.25, HAEMATOXYLIN),
    "brown stain": _stain("tumour", 0.9, DAB),
    "fat": _fat,
    "mucus": _mucus,
    "pale beside dark": _pale_beside_dark,
    "haze .02": _haze("mixed", 0.8, 0.02, 400),
    "haze .05": _haze("tumour", 0.8, 0.05, 400),
    "haze .10": _haze("section", 0.8, 0.10, 300),
    "haze .15": _haze("stroma", 0.8, 0.15, 500),
    "haze .15, steep": _haze("mixed", 1.0, 0.15, 150),
    "haze .08, pale tissue": _haze("stroma", 0.3, 0.08, 300),
    "haze .08, pale beside dark": _pale_beside_dark_in_haze,
    "gradient": _gradient,
    "vignetting": _vignetting,
    "stripes": _stripes,
    "yellowed glass": _lamp((228, 222, 200)),
    "grey glass, 210": _lamp((210, 212, 214)),
    "dim lamp, 170": _lamp((168, 170, 172)),
    "dim lamp, 170, pale": _lamp((168, 170, 172), 0.3),
    "white glass, 255": _lamp((255, 255, 255)),
    "coverslip edge": _coverslip,
    "shadow": _shadow,
    "bubbles": _bubbles,
    "dust": _dust,
    **{f"{colour} pen beside": _pen(colour, False) for colour in PENS},
    **{f"{colour} pen across": _pen(colour, True) for colour in PENS},
    "unscanned rectangles": _unscanned,
    "black padding": _padding,
    "fluorescence": _fluorescence,
    "fold": _fold,
    "out of focus": _out_of_focus,
    "all tissue": _all_tissue,
    "all pale tissue": _all_pale_tissue,
    "all glass": _all_glass,
    "all haze": _all_haze,
    "all ink": _all_ink,
}
HAZY = tuple(name for name in SCENES if name.startswith(("haze", "all haze")))


def compose(name: str, shape: tuple[int, int] = SHAPE) -> Scene:
    """Build a scene by its name, of pixels of 2 µm."""
    scene = Scene(name, shape)
    SCENES[name](scene)
    return scene


def score(mask: Mask, truth: Truth) -> Score:
    """Compare a mask over a scene with the truth, at 2 µm a pixel."""
    soft = _enlarge(np.pad(mask, 1, mode="edge").astype(np.float32), round(truth.mpp / FINE), pad=1)
    called = soft[: truth.tissue.shape[0], : truth.tissue.shape[1]] >= 0.5
    in_called, in_tissue = called & truth.counted, truth.tissue & truth.counted
    glass = (in_called & ~truth.tissue).sum() / max(in_called.sum(), 1)
    missed = (in_tissue & ~called).sum() / max(in_tissue.sum(), 1)
    return Score(float(glass), float(missed), _border_error(called, truth))


def _agreement(artefact: Mask, truth: Truth) -> tuple[float, float]:
    """Take the share of the scene wrongly called an artefact, and of the artefacts that is found."""
    step = round(truth.mpp / FINE)
    called = artefact.repeat(step, 0).repeat(step, 1)[: truth.artefact.shape[0], : truth.artefact.shape[1]]
    wrong = (called & ~_near(truth.artefact, 2 * RIM)).mean()
    return float(wrong), float((called & truth.artefact).sum() / max(truth.artefact.sum(), 1))


def _border_error(called: Mask, truth: Truth) -> float:
    ours = _edge(called) & truth.counted
    theirs = _edge(truth.tissue) & truth.counted
    if not ours.any() or not theirs.any():
        return float("nan")
    far = ndimage.distance_transform_edt(~_edge(truth.tissue))[ours] * FINE
    back = ndimage.distance_transform_edt(~_edge(called))[theirs] * FINE
    return float((np.minimum(far, CAP).mean() + np.minimum(back, CAP).mean()) / 2)


def _edge(mask: Mask) -> Mask:
    return np.asarray(mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), border_value=1))


def _near(mask: Mask, radius: float) -> Mask:
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask) * FINE <= radius)


def _erode(mask: Mask, radius: float) -> Mask:
    return ~_near(~mask, radius)


def _largest(mask: Mask) -> Mask:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _tile(texture: Colours, shape: tuple[int, int]) -> Colours:
    """Repeat a texture, mirrored at its edges, to fill a shape."""
    rows, columns = (
        np.abs((np.arange(n) + m) % (2 * m) - m).clip(0, m - 1)
        for n, m in zip(shape, texture.shape[:2], strict=True)
    )
    return np.asarray(texture[rows[:, None], columns[None]])


def _enlarge(field: NDArray[Any], factor: int, pad: int = 0) -> Plane:
    """Enlarge by a whole factor, linear between pixel centres; ``pad`` pixels round it are cut off."""
    out = field.astype(np.float32)
    for axis in (0, 1):
        size = out.shape[axis]
        position = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1).astype(np.float32)
        low = np.minimum(position.astype(int), max(size - 2, 0))
        high = np.minimum(low + 1, size - 1)
        share = (position - low).reshape((-1, 1) if axis == 0 else (1, -1))
        out = np.take(out, low, axis) * (1 - share) + np.take(out, high, axis) * share
    return out[pad * factor : out.shape[0] - pad * factor, pad * factor : out.shape[1] - pad * factor]


def measure_scene(name: str, mpps: tuple[int, ...], pictures: Path | None) -> list[dict[str, Any]]:
    """Measure what is found on a scene, at each resolution."""
    scene, rows = compose(name), []
    for mpp in mpps:
        truth = scene.render(mpp)
        start = time.perf_counter()
        masks = segment_tissue(truth.image, truth.mpp)
        seconds = time.perf_counter() - start
        scores = score(masks.tissue, truth)
        artefacts = _agreement(masks.folded | masks.blurred, truth)
        rows.append(
            {"scene": name, "mpp": mpp, **scores._asdict(), "artefacts": artefacts, "seconds": seconds}
        )
        extra = " ".join(f"{value:.3f}" for value in (*artefacts, seconds))
        print(f"{name:28s} {mpp} | " + "{:6.3f} {:6.3f} {:6.1f}".format(*scores) + f" | {extra}", flush=True)
        if pictures is not None:
            Image.fromarray(outline(truth.image, masks.tissue)).save(pictures / f"{name} {mpp}.png")
    return rows


def outline(image: UInt8[np.ndarray, "h w 3"], mask: Mask) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a mask's border over an image in green."""
    drawn = image.copy()
    drawn[_edge(mask)] = (0, 190, 0)
    return drawn


def format_page() -> str:
    """Format all kept results, side by side, as a page of Markdown."""
    results = {
        path.stem.removeprefix("tissue_"): json.loads(path.read_text("utf-8"))
        for path in RESULTS.glob("tissue_*.json")
    }
    results = dict(sorted(results.items(), key=lambda item: str(item[1]["measured"])))
    lines = [
        "# Tissue on generated slides",
        "",
        "Made by `python -m benchmarks.tissue`, which says what is measured and how. *Glass*: the share of "
        "what is called tissue that is none; *missed*: the share of the tissue that is not found; *border*: "
        "the mean distance of the borders in µm. To reach: glass and missed ≤ .02 on scenes with haze, "
        "border ≤ 8 µm.",
        "",
        *(f"- *{name}*: commit {result['commit']}, {result['measured']}" for name, result in results.items()),
        "",
        "| scene | µm a pixel | " + " | ".join(f"{m}, {n}" for m in Score._fields for n in results) + " |",
        "| --- | ---: |" + " ---: |" * (len(Score._fields) * len(results)),
    ]
    tables = [{(row["scene"], row["mpp"]): row for row in result["rows"]} for result in results.values()]
    for scene, mpp in dict.fromkeys(key for table in tables for key in table):
        cells = [_format_cell(table.get((scene, mpp)), m) for m in Score._fields for table in tables]
        lines.append(f"| {scene} | {mpp} | " + " | ".join(cells) + " |")
    for title, names in (("mean of haze", HAZY), ("mean of all", tuple(SCENES))):
        for mpp in (8, 4):
            means = [_average([t[n, mpp] for n in names if (n, mpp) in t]) for t in tables]
            cells = [_format_cell(row, m) for m in Score._fields for row in means]
            lines.append(f"| **{title}** | {mpp} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _average(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Average scores over rows; a score that a scene does not have is left out."""
    values = {m: [row[m] for row in rows if row[m] is not None] for m in Score._fields}
    return {m: float(np.mean(v)) if v else None for m, v in values.items()}


def _format_cell(row: dict[str, Any] | None, measure: str) -> str:
    if row is None or row[measure] is None:
        return ""
    return f"{row[measure]:.1f}" if measure == "border" else f"{row[measure]:.3f}"


@click.command()
@click.argument("scenes", nargs=-1)
@click.option("--mpp", "mpps", type=click.Choice(["4", "8"]), multiple=True, help="Both unless given.")
@click.option("--pictures", type=click.Path(path_type=Path, file_okay=False), help="Outlines go there.")
@click.option("--name", help="Keep the result under this name.")
def main(scenes: tuple[str, ...], mpps: tuple[str, ...], pictures: Path | None, name: str | None) -> None:
    """Measure the scenes whose names contain one of SCENES (all without)."""
    rows = []
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    for scene in SCENES:
        if not scenes or any(part in scene for part in scenes):
            rows += measure_scene(scene, tuple(map(int, mpps)) or (8, 4), pictures)
    for row in rows:  # JSON has no nan
        row.update({key: None for key, value in row.items() if value != value})
    for mpp in sorted({row["mpp"] for row in rows}):
        for title, names in (("haze", HAZY), ("all", tuple(SCENES))):
            chosen = [row for row in rows if row["mpp"] == mpp and row["scene"] in names]
            if chosen:
                means = " ".join(_format_cell(_average(chosen), m) for m in Score._fields)
                print(f"mean, {title:5s} {mpp} µm: {means}")
    if name:
        text = (
            json.dumps({**describe_machine(), "rows": rows}, indent=1, ensure_ascii=False, allow_nan=False)
            + "\n"
        )
        (RESULTS / f"tissue_{name}.json").write_text(text, encoding="utf-8")
        (RESULTS / "tissue.md").write_text(format_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
