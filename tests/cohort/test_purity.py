"""``fseg fit`` on slides with glass: rows are of what lies deep in tissue, borders are mixtures."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cohorts import make_job, run_in_process
from PIL import Image
from scipy import ndimage

from fseg_jax.cli import main
from fseg_jax.codebook import Codebook, load_all, save_all
from fseg_jax.cohort import fit
from fseg_jax.cohort.job import list_shared_dependencies
from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.cohort.sample_folder import SampleSettings, SlideSample, read_sample
from fseg_jax.cohort.sample_rows import SampleRows
from fseg_jax.cohort.sampling import draw_tiles, sample_cohort
from fseg_jax.encoders.classical import classical
from fseg_jax.numerics.kmeans import streaming
from fseg_jax.slides.reader import open_slide
from fseg_jax.slides.tissue import load_tissue

ENCODER = classical()
STRIDE = ENCODER.card.stride
SETTINGS = SampleSettings(tile=128, on="tokens")
PAPER = replace(SETTINGS, pure=False)


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """A folder with ``thick``, a disc of tissue, and ``thin``, strands of 48 µm; 640² at 1 µm, with masks."""
    folder = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(0)
    y, x = np.indices((640, 640))
    masks = {"thick": (y - 300) ** 2 + (x - 320) ** 2 < 240**2, "thin": (x - 60) % 160 < 48}
    for name, mask in masks.items():
        image = np.full((640, 640, 3), 244, np.uint8)
        cells = rng.integers(-30, 30, (160, 160, 1)).repeat(4, 0).repeat(4, 1)
        colour = np.where((x < 320)[..., None], (220, 120, 180), (120, 80, 160))
        image[mask] = (colour + cells).clip(0, 255).astype(np.uint8)[mask]
        Image.fromarray(image).save(folder / f"{name}.png")
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(folder / f"{name}_mask.png")
    rows = [f"{name},{name}.png,1.0,{name}_mask.png" for name in masks]
    (folder / "slides.csv").write_text("\n".join(["slide_id,path,mpp,tissue", *rows]) + "\n")
    return folder


def sample(slides: Path, folder: Path, name: str, settings: SampleSettings) -> SlideSample:
    slide = ManifestSlide(name, slides / f"{name}.png", 1.0, tissue=str(slides / f"{name}_mask.png"))
    assert sample_cohort([slide], folder, ENCODER, settings) == {}
    return read_sample(folder, name)


def encode(slides: Path, name: str, corner: np.ndarray) -> np.ndarray:
    image = np.asarray(Image.open(slides / f"{name}.png"))[corner[0] :, corner[1] :][:128, :128]
    return np.asarray(ENCODER(jnp.asarray(image[None])))[0]


def measure_depth(slides: Path, name: str) -> np.ndarray:
    return ndimage.distance_transform_edt(np.asarray(Image.open(slides / f"{name}_mask.png")) > 127)


def test_tokens_are_deep_and_calm_and_others_are_of_the_border(slides, tmp_path):
    found = sample(slides, tmp_path, "thick", SETTINGS)
    depth = measure_depth(slides, "thick")
    centres = found.boxes[found.tiles] + found.tokens * STRIDE + STRIDE // 2
    assert depth[tuple(centres.T)].min() > 39 and found.facts.border.max() == 0
    assert found.facts.glass.max() < 0.01 and found.facts.contrast.min() > 5
    rows = SampleRows(tmp_path, ["thick"])[0 : found.rows].astype(np.float32)
    for tile, corner in enumerate(found.boxes):
        A = encode(slides, "thick", corner)
        tokens = found.tokens[found.tiles == tile]
        np.testing.assert_allclose(rows[found.tiles == tile], A[tuple(tokens.T)], rtol=2e-3, atol=1e-3)
        assert len(np.unique(tokens, axis=0)) == len(tokens)
        assert tokens.min(initial=1) >= 1 and tokens.max(initial=1) <= 6  # of 8: none at the tile's edge
    border = SampleRows(tmp_path, ["thick"], border=True)
    assert border.shape[0] == found.border_rows > 50
    near = []
    for corner in found.boxes:
        A = encode(slides, "thick", corner)
        for y, x in np.ndindex(8, 8):
            if not (1 <= y <= 6 and 1 <= x <= 6):
                continue
            bottom, right = corner + np.array([y, x]) * STRIDE + STRIDE // 2  # the token's centre
            around = depth[bottom - 1 : bottom + 1, right - 1 : right + 1]
            if around.max() > 0 and around.min() < 41:
                near.append(A[y, x])
    for row in border[0 : found.border_rows].astype(np.float32):
        assert np.abs(np.array(near) - row).max(1).min() < 0.01


def test_averages_are_of_deep_tokens_and_the_papers_of_all(slides, tmp_path):
    averages = replace(SETTINGS, on="tiles")
    found = sample(slides, tmp_path / "pure", "thick", averages)
    every = sample(slides, tmp_path / "paper", "thick", replace(averages, pure=False))
    depth = measure_depth(slides, "thick")
    assert found.tokens is None and every.border_rows == 0 < found.border_rows
    assert (every.tiles == np.arange(len(every.boxes))).all()
    assert 0 < len(found.tiles) <= len(found.boxes) and (np.diff(found.tiles) > 0).all()
    pure, paper = (
        SampleRows(tmp_path / name, ["thick"])[0:99].astype(np.float32) for name in ("pure", "paper")
    )
    for tile, row in zip(every.tiles, paper, strict=True):
        A = encode(slides, "thick", every.boxes[tile])
        np.testing.assert_allclose(row, A.mean((0, 1)), rtol=2e-3, atol=1e-3)
    for tile, row in zip(found.tiles, pure, strict=True):
        corner = found.boxes[tile]
        A = encode(slides, "thick", corner)
        y, x = corner[:, None] + np.arange(8) * STRIDE + STRIDE // 2
        deep = depth[y[:, None], x] >= 40
        np.testing.assert_allclose(row, A[deep].mean(0), rtol=0.02, atol=0.02)
    assert every.facts.border.max() > found.facts.border.max() == 0


def test_a_slide_of_strands_alone_gives_all_of_its_tissue(slides, tmp_path):
    """Its rows are said to be border, and the next slide is not affected."""
    found = sample(slides, tmp_path / "tokens", "thin", replace(SETTINGS, min_tissue=0.1))
    assert found.rows > found.border_rows > 0 and found.facts.border.min() == 1  # the edges' too
    found = sample(slides, tmp_path / "tiles", "thin", replace(SETTINGS, on="tiles", min_tissue=0.1))
    assert found.rows == len(found.boxes) and found.facts.border.min() == 1


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_tiles_have_the_share_of_tissue_that_is_wanted(slides, share):
    mask = np.asarray(Image.open(slides / "thick_mask.png")) > 127
    means = mask.reshape(5, 128, 5, 128).mean((1, 3))
    with open_slide(slides / "thick.png", 1.0) as slide:
        tissue = load_tissue(slides / "thick_mask.png", slide)
        corners = draw_tiles(slide, "thick", 128, replace(SETTINGS, min_tissue=share), tissue)
    np.testing.assert_array_equal(corners // 128, np.argwhere(means >= share))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0)


@pytest.mark.parametrize("on", ["tokens", "tiles"])
def test_fit_writes_mixtures_that_differ_from_its_centres(slides, tmp_path, on):
    path = tmp_path / "book.safetensors"
    common = ("fit", slides / "slides.csv", "-o", path, "--encoder", "classical", "--tile", 64, "--on", on)
    assert run(*common, "--k", 2, 3, "--min-tissue", 0.2, "--mixtures", 3) == 0
    books = load_all(path)
    assert books[2].mixtures.shape == (3, 20) and (books[2].mixtures == books[3].mixtures).all()
    rows = SampleRows(path.with_suffix(".features"), ["thick", "thin"], border=True)
    border = rows[0 : rows.shape[0]].astype(np.float32)
    nearest = ((border[:, None] - books[2].mixtures) ** 2).sum(-1).argmin(1)
    for j in range(3):  # each is the mean of the border's tokens that are nearest to it
        np.testing.assert_allclose(books[2].mixtures[j], border[nearest == j].mean(0), rtol=1e-3, atol=1e-3)
    card = json.loads((tmp_path / "book.card" / "card.json").read_text())
    assert card["settings"]["mixtures"] == 3 and card["settings"]["min_tissue"] == 0.2
    assert "mixtures of" in books[2].provenance.source
    if on == "tiles":
        return
    again = (*common, "--overwrite", "--k", 2, 3, "--min-tissue", 0.2)
    assert run(*again, "--mixtures", 8) == 0  # from the same features
    assert load_all(path)[2].mixtures.shape == (8, 20)
    assert run(*again, "--mixtures", 0) == 2  # the paper's are other features
    assert run(*again, "--mixtures", 0, "--features", tmp_path / "paper") == 0
    assert load_all(path)[2].mixtures is None


def test_with_too_few_tokens_at_the_border_there_are_no_mixtures(slides, tmp_path):
    sample(slides, tmp_path, "thick", SETTINGS)
    count = read_sample(tmp_path, "thick").border_rows
    for mixtures, expected in ((count // 16, count // 16), (count // 16 + 1, None)):
        centers, _ = fit._fit_mixtures(
            SampleRows(tmp_path, ["thick"]), fit.FitSettings(SETTINGS, mixtures=mixtures)
        )
        assert (None if centers is None else len(centers)) == expected


def test_mixtures_that_have_not_converged_are_said(slides, tmp_path, monkeypatch, caplog):
    sample(slides, tmp_path, "thick", SETTINGS)
    fitted = streaming.fit(np.random.default_rng(0).random((50, 4), np.float32), [2], key=jax.random.key(0))
    stopped = {2: fitted[2]._replace(converged=False)}
    monkeypatch.setattr(streaming, "fit", lambda *_, **__: stopped)
    with caplog.at_level(logging.WARNING):
        fit._fit_mixtures(SampleRows(tmp_path, ["thick"]), fit.FitSettings(SETTINGS, mixtures=2))
    assert caplog.messages == ["k-means of the tokens at the border has not converged"]


def test_a_cohort_uses_its_codebooks_mixtures(slides, tmp_path):
    """Its results are of another codebook than without them, and of other settings with ``mixtures=0``."""
    (tmp_path / "one.csv").write_text(f"slide_id,path,mpp\nthick,{slides}/thick.png,1.0\n")
    rng = np.random.default_rng(0)
    centers, mixtures = rng.gamma(0.5, size=(4, 20)), rng.gamma(0.5, size=(2, 20))
    save_all(tmp_path / "plain.safetensors", {4: Codebook(centers)})
    save_all(tmp_path / "mixed.safetensors", {4: Codebook(centers, mixtures=mixtures)})
    found = {}
    for name, book, count in (("plain", "plain", 4), ("mixed", "mixed", 4), ("none", "mixed", 0)):
        place = tmp_path / name
        path = tmp_path / f"{book}.safetensors"
        run_in_process(tmp_path / "one.csv", place, path, changes={"mixtures": count})
        found[name] = json.loads((place / "thick.json").read_text())
        job = make_job(place, path, mixtures=count)
        of_job = list_shared_dependencies(job, ENCODER.card).mixtures
        assert of_job == {"plain": None, "mixed": 2, "none": 0}[name]
    assert [found[name]["parameters"]["mixtures"] for name in ("plain", "mixed", "none")] == [0, 2, 0]
    assert len({record["settings_hash"] for record in found.values()}) == 3
    areas = {name: record["areas_mm2"] for name, record in found.items()}
    assert areas["plain"] == areas["none"] != areas["mixed"] and len(areas["mixed"]) == 4
