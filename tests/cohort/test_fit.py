"""``fseg fit``: the same tiles whatever the order, features that are reused, and a codebook with its card."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from kill import die_before_step
from PIL import Image

from fseg_jax.cli import main
from fseg_jax.codebook import Codebook, Provenance, load_all
from fseg_jax.cohort import fit, sampling
from fseg_jax.cohort.manifest import ManifestSlide, load_manifest
from fseg_jax.cohort.sample_folder import SampleSettings, prepare_folder
from fseg_jax.cohort.sample_rows import SampleRows
from fseg_jax.cohort.sampling import draw_tiles, narrow, sample_cohort
from fseg_jax.encoders.classical import classical
from fseg_jax.errors import InputError
from fseg_jax.slides.reader import open_slide
from fseg_jax.slides.tissue import take_whole_slide

SETTINGS = SampleSettings(tiles=3, tile=64, tissue="all")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Five slides of noise of several colours, 192 × 256, at 1 µm per pixel."""
    folder = tmp_path_factory.mktemp("cohort")
    r = np.random.default_rng(0)
    lines = ["slide_id,path,mpp,site,split"]
    for i in range(5):
        colour = r.integers(60, 200, 3)
        pixels = np.clip(colour + r.normal(0, 5 + 10 * i, (192, 256, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"s{i},{i}.png,1.0,{'AB'[i % 2]},{'train' if i < 4 else 'test'}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0)


def test_order_and_workers_do_not_change_what_is_sampled(cohort, tmp_path):
    slides, encoder = load_manifest(cohort / "slides.csv"), classical()
    sample_cohort(slides, tmp_path / "one", encoder, SETTINGS)
    for share in ((1, 2), (0, 2)):
        other = replace(SETTINGS, batch=2, threads=1)
        sample_cohort(slides[::-1], tmp_path / "two", encoder, other, shard=share)
    one, two = (SampleRows(tmp_path / name, [s.slide_id for s in slides]) for name in ("one", "two"))
    assert one.shape == (15, encoder.card.channels)
    np.testing.assert_array_equal(one[slice(0, 15)], two[slice(0, 15)])
    np.testing.assert_array_equal(one[slice(2, 7)], one[slice(0, 15)][2:7])
    assert len(one[slice(4, 4)]) == 0


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_features_that_float16_does_not_hold_are_an_error(size):
    X, card = np.full((3, 4), size, np.float32), classical().card
    path = Path("x.tif")
    with pytest.raises(
        InputError, match=r"x\.tif: features of up to 1e.30 do not fit in float16: choose --store"
    ):
        narrow(X, "float16", path, card)
    np.testing.assert_allclose(narrow(X, "bfloat16", path, card).astype(np.float32), X, rtol=0.01)


def test_rows_are_the_means_of_the_encoders_features(cohort, tmp_path):
    slides, encoder = load_manifest(cohort / "slides.csv")[:1], classical()
    sample_cohort(slides, tmp_path / "f", encoder, SETTINGS)
    rows = SampleRows(tmp_path / "f", ["s0"])
    with open_slide(slides[0].path, 1.0) as slide:
        boxes = draw_tiles(slide, "s0", 64, SETTINGS, take_whole_slide(slide))
        tiles = np.stack([slide.read(int(y), int(x), 64, 64, 1.0) for y, x in boxes])
    features = np.asarray(encoder(jnp.asarray(tiles))).mean((1, 2))
    np.testing.assert_allclose(rows[slice(0, 3)], features, rtol=2e-3, atol=1e-3)
    store = {"driver": "zarr3", "kvstore": f"file://{tmp_path}/f/slides/s0/features.zarr/"}
    np.testing.assert_array_equal(ts.open(store).result().read().result(), rows[slice(0, 3)])
    small = np.asarray(Image.fromarray(tiles[2]).resize((96, 96), Image.Resampling.BOX), float)
    assert abs(small - rows.read_thumbnails(np.array([2]))[0]).mean() < 12  # JPEG


def test_other_settings_are_refused(cohort, tmp_path):
    encoder = classical()
    prepare_folder(tmp_path / "f", encoder.card, SETTINGS, 5)
    with pytest.raises(InputError, match=r"made with other settings .*tiles 3 there, 4 here"):
        prepare_folder(tmp_path / "f", encoder.card, replace(SETTINGS, tiles=4), 5)
    with pytest.raises(InputError, match="something else than a folder of features"):
        prepare_folder(cohort, encoder.card, SETTINGS, 5)


def sampled(folder: Path, slide: ManifestSlide) -> bytes:
    """The features that a folder holds of a slide, after what is missing has been sampled."""
    assert sample_cohort([slide], folder, classical(), SETTINGS) == {}
    return (folder / "slides" / slide.slide_id / "features.zarr" / "c" / "0" / "0").read_bytes()


def test_a_slide_that_is_another_one_now_is_sampled_again(cohort, tmp_path, caplog):
    """Its path is corrected, it is replaced, its tissue or the manifest changes, or what is there is spoilt:
    each time the features are those of what is there now, and it is said why."""
    folder = tmp_path / "f"
    shutil.copy(cohort / "0.png", path := tmp_path / "0.png")
    slide = ManifestSlide("s", path, 1.0)
    first = sampled(folder, slide)
    os.utime(shutil.copy(path, tmp_path / "moved.png"), (0, 0))
    slide = replace(slide, path=tmp_path / "moved.png")
    assert sampled(folder, slide) == first and not caplog.messages

    slide = replace(slide, path=cohort / "1.png")
    second = sampled(folder, slide)
    assert second == sampled(tmp_path / "fresh", slide) != first
    assert caplog.messages == ["s: the file at its path is another one; sampled again"]
    shutil.copy(cohort / "2.png", path)
    third = sampled(folder, replace(slide, path=path))
    assert third not in (first, second) and len(caplog.messages) == 2

    mask = tmp_path / "mask.png"
    Image.fromarray(np.full((192, 256), 255, np.uint8)).save(mask)
    slide = replace(slide, path=path, tissue=str(mask))
    sampled(folder, slide)
    assert "now it says {'mpp': 1.0, 'tissue': " in caplog.messages[-1]
    sampled(folder, replace(slide, series=0))
    assert caplog.messages[-1].endswith("'series': 0}; sampled again")
    sampled(folder, slide)
    upper = np.zeros((192, 256), np.uint8)
    upper[:96] = 255
    Image.fromarray(upper).save(mask)
    sampled(folder, slide)
    assert caplog.messages[-1] == "s: its tissue file is another one; sampled again"
    held = json.loads((folder / "slides" / "s" / "slide.json").read_text())
    assert max(y for y, _ in held["boxes"]) < 96

    whole = sampled(folder, slide)
    for spoilt, why in (
        ("slide.json", "its record is damaged"),
        ("features.zarr/zarr.json", "some of its features are gone"),
    ):
        path = folder / "slides" / "s" / spoilt
        path.write_text("") if path.name == "slide.json" else path.unlink()
        assert sampled(folder, slide) == whole and caplog.messages[-1] == f"s: {why}; sampled again"
    assert not list(folder.rglob(".*"))


def test_sampled_features_that_are_damaged_are_one_line(cohort, tmp_path):
    sampled(tmp_path / "f", load_manifest(cohort / "slides.csv")[0])
    place = tmp_path / "f" / "slides" / "s0"
    array = json.loads((place / "features.zarr" / "zarr.json").read_text())
    held = json.loads((place / "slide.json").read_text())
    grid = {"name": "regular", "configuration": {"chunk_shape": [10**6, 10**6]}}
    damages = {
        "features.zarr/zarr.json": [
            *("{", json.dumps(array | {"shape": [10**12, 20]}), json.dumps(array | {"chunk_grid": grid}))
        ],
        "slide.json": [
            json.dumps(held | change)
            for change in (
                {"boxes": ["x", "y"]},
                {"rows": 10**12},
                {"rows": 0},
                {"border_rows": -1},
                {"border_rows": "many"},
                {"tiles": [0, 1]},
                {"tiles": [0, 1, 3]},
                {"glass": [0.0, 1.0]},
                {"contrast": [0.0, 1.0, None]},
            )
        ],
        "features.zarr/c/0/0": ["short"],
    }
    for name, contents in damages.items():
        before = (place / name).read_bytes()
        for content in contents:
            (place / name).write_text(content)
            with pytest.raises(InputError, match=r"damaged|cannot be read") as caught:
                SampleRows(tmp_path / "f", ["s0"])[0:3]
            assert "\n" not in str(caught.value)
        (place / name).write_bytes(before)
    SampleRows(tmp_path / "f", ["s0"])[0:3]
    (tmp_path / "f" / "settings.json").write_text("[]")
    with pytest.raises(InputError, match=r"settings\.json: damaged"):
        prepare_folder(tmp_path / "f", classical().card, SETTINGS, 1)


def test_samples_from_before_slides_had_an_identity_are_taken_by_the_names_of_their_files(
    cohort, tmp_path, caplog
):
    slide = load_manifest(cohort / "slides.csv")[0]
    first = sampled(tmp_path / "f", slide)
    record = tmp_path / "f" / "slides" / "s0" / "slide.json"
    held = json.loads(record.read_text())
    del held["slide"]["identity"], held["tissue_sha256"]
    record.write_text(json.dumps(held))
    assert sampled(tmp_path / "f", slide) == first and not caplog.messages
    assert sampled(tmp_path / "f", replace(slide, path=cohort / "1.png")) != first


def test_a_slide_that_cannot_be_sampled_again_is_left_out_of_the_codebook(cohort, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    shutil.copytree(cohort, folder)
    slides = load_manifest(folder / "slides.csv")[:3]
    assert sample_cohort(slides, tmp_path / "f", classical(), SETTINGS) == {}
    (folder / "1.png").write_bytes(b"another file, and no slide")
    fitted_on = []

    def rows(_, slide_ids):
        fitted_on.extend(slide_ids)
        raise InterruptedError

    monkeypatch.setattr(fit, "SampleRows", rows)
    with pytest.raises(InterruptedError):
        fit.fit_cohort(
            slides, tmp_path / "b.safetensors", classical(), tmp_path / "f", fit.FitSettings(SETTINGS)
        )
    assert fitted_on == ["s0", "s2"]
    assert (tmp_path / "f" / "failures.csv").read_text().splitlines()[1].startswith("s1,")


def test_fit_from_the_command_line_and_again_without_opening_the_slides(
    cohort, tmp_path, capsys, monkeypatch
):
    (tmp_path / "in").mkdir()
    for path in cohort.iterdir():
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "in" / "2.png").write_bytes(b"broken")
    book = tmp_path / "book.safetensors"
    common = (tmp_path / "in" / "slides.csv", "--features", tmp_path / "f", "--tile", 64, "--no-tissue")
    assert run("fit", *common, "-o", book, "--k", 2, 4, "--restarts", 1, "--split", "train") == 1
    said = capsys.readouterr().err
    assert "1 of 4 slides failed" in said.splitlines()[-1]
    assert (tmp_path / "f" / "failures.csv").read_text().splitlines()[1].startswith("s2,")
    books = load_all(book)
    assert sorted(books) == [2, 4]
    assert books[4].provenance.encoder == "he-small" and books[4].provenance.mpp == 1.0
    numbers = json.loads((tmp_path / "book.card" / "card.json").read_text())
    counts = numbers["of_k"][1]["counts"]
    assert counts == sorted(counts, reverse=True) and sum(counts) == numbers["rows"] == 36
    assert numbers["slides"] == 3 and numbers["failed"] == 1
    site = numbers["of_k"][1]["site"]  # of three slides, of which two are of one site
    assert 0 <= site["share"] <= 1 and site["chance"] > 0.2
    assert run("fit", *common, "-o", book, "--k", 2) == 2  # it exists

    monkeypatch.setattr(sampling, "open_slide", None)  # what was sampled is not opened again
    good = tmp_path / "in" / "good.csv"
    lines = (tmp_path / "in" / "slides.csv").read_text().splitlines()
    good.write_text("\n".join([lines[0], lines[1], lines[2], lines[4]]) + "\n")
    again = (good, *common[1:], "-o", tmp_path / "again.safetensors", "--restarts", 1)
    assert run("fit", *again, "--k", 2, 4) == 0
    for k, other in load_all(tmp_path / "again.safetensors").items():
        np.testing.assert_allclose(other.centers, books[k].centers, atol=1e-5)


@pytest.mark.long
def test_two_processes_fit_what_one_does(cohort, tmp_path):
    """``jax.distributed`` on loopback; they share the slides, of which one is broken, and the clustering."""
    broken = tmp_path / "in"
    shutil.copytree(cohort, broken)
    (broken / "3.png").write_bytes(b"broken")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def fit(name: str, *options: str, **variables: str) -> subprocess.Popen:
        given = (broken / "slides.csv", "-o", tmp_path / f"{name}.safetensors", "--encoder", "classical")
        given = (*given, "--tile", 64, "--no-tissue", "--k", 2, 4, 16, *options)
        return subprocess.Popen(
            [sys.executable, "-m", "fseg_jax", "fit", *map(str, given)],
            env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
            stderr=subprocess.PIPE,
            text=True,
        )

    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    running = [fit("one"), *(fit("two", "--distributed", **job, JAX_PROCESS_ID=i) for i in "01")]
    said = [process.communicate(timeout=600)[1] for process in running]
    assert [process.returncode for process in running] == [1, 1, 1], said  # for the broken slide
    assert all("3.png" in text and "1 of 5 slides failed" in text for text in said)  # the second's slide
    one, two = (load_all(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    for k in (2, 4, 16):
        np.testing.assert_allclose(two[k].centers, one[k].centers, atol=1e-4)
        assert two[k].provenance == one[k].provenance
    features, cards = (
        [sorted(p.relative_to(tmp_path / f"{name}.{kind}") for p in (tmp_path / f"{name}.{kind}").rglob("*"))
         for name in ("one", "two")]
        for kind in ("features", "card")
    )  # fmt: skip
    assert features[0] == features[1] and cards[0] == cards[1]


def test_a_folder_that_another_worker_has_just_begun_is_taken(tmp_path):
    (tmp_path / "f" / "slides").mkdir(parents=True)
    (tmp_path / "f" / ".settings.json.0123abcd.part").touch()
    prepare_folder(tmp_path / "f", classical().card, SETTINGS, 5)
    assert (tmp_path / "f" / "settings.json").exists()


def test_tokens_are_drawn_from_tiles_and_framed(cohort, tmp_path):
    slides, encoder = load_manifest(cohort / "slides.csv")[:2], classical()
    sample_cohort(slides, tmp_path / "f", encoder, replace(SETTINGS, on="tokens"))
    rows = SampleRows(tmp_path / "f", ["s0", "s1"])
    assert rows.shape[0] == 2 * 3 * 2  # the calmer half of the 4 of 16 tokens that are not at the tile's edge
    (picture,) = rows.read_thumbnails(np.array([5]), encoder.card.stride / 64)
    assert (picture == (0, 240, 220)).all(-1).sum() > 20


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_step_of_writing_a_codebook_and_its_card_are_of_one_fit(
    tmp_path, monkeypatch, overwrite
):
    """And the same command is not refused for a card without its codebook."""

    def write(folder, card):
        folder.mkdir()
        for name in ("index.html", "card.json"):
            (folder / name).write_text(card)

    monkeypatch.setattr(fit, "write_card", write)
    books = [{1: Codebook(np.full((1, 3), i, np.float32), Provenance(encoder="classical"))} for i in (0, 1)]
    for step in count():
        path = tmp_path / f"{step}" / "a.safetensors"
        path.parent.mkdir()
        if overwrite:
            fit.write_books(path, books[0], "0")
        died = die_before_step(lambda path=path: fit.write_books(path, books[1], "1"), step)
        try:
            fit.check_codebook_path(path, overwrite)
        except InputError as error:
            assert "exists" in str(error) and not overwrite
        there = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
        assert there in ([], ["a.card", "a.safetensors"])
        if there:
            said = f"{load_all(path)[1].centers[0, 0]:.0f}"
            assert [p.read_text() for p in (path.parent / "a.card").iterdir()] == [said] * 2
            assert overwrite or said == "1"
        else:
            assert not overwrite
        if not died:
            assert there and said == "1"
            break
    assert step > 20


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--tile", 63), "must be a multiple of he-small's stride"),
        (("--k", 5000), "have 60 tiles; choose fewer clusters or more tiles, or --on tokens"),
        (("--min-tissue", 1.5), "--min-tissue"),
        (("--min-tissue", "half"), "--min-tissue"),
        (("--mixtures", -1), "--mixtures"),
        (("--mixtures", 65), "--mixtures"),
        (("--split", "val"), "no slide of the split 'val'"),
        (("--shard", "2/2"), "2/2: give i/n, counted from 0"),
        (("-o", "book.txt"), "ends in .safetensors"),
        (("--distributed",), "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
        (("--distributed", "--shard", "0/2"), "contradict each other"),
    ],
)
def test_a_users_mistakes(cohort, tmp_path, capsys, monkeypatch, extra, message):
    monkeypatch.chdir(tmp_path)
    given = ("-o", tmp_path / "b.safetensors", "--features", tmp_path / "f", "--no-tissue", "--tile", 64)
    assert run("fit", cohort / "slides.csv", *given, *extra) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()
