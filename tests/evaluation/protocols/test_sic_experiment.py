"""SIC's experiment where the answer is known: seeds, scores, what is written, what is refused."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import planted_bands
import pytest
import tifffile
from PIL import Image
from sklearn.metrics import f1_score

from fseg_jax.errors import InputError
from fseg_jax.evaluation.protocols import sic_experiment
from fseg_jax.evaluation.report import sic_report
from fseg_jax.evaluation.results import SicRow, SicTrial
from fseg_jax.evaluation.run import evaluate_sic
from fseg_jax.evaluation.settings import SicSettings
from fseg_jax.pipeline.embed import PatchSettings

SIDE = 128
PATCHES = PatchSettings(patch=32, mpp=0.5, tissue="all")
SETTINGS = SicSettings(patches=PATCHES)
ENCODER = planted_bands.make_encoder()
# A tumour, and two benign tissues of which one is near it in colour: a single cut puts both together.
TUMOUR, NEAR, FAR = (200, 60, 60), (150, 90, 80), (20, 60, 230)


def write_slide(folder: Path, name: str, tumour: int, *, near: int = 64) -> None:
    """Columns of tumour, of the tissue like it, and of the other; the mask says which are tumour."""
    folder.mkdir(parents=True, exist_ok=True)
    image = np.empty((SIDE, SIDE, 3), np.int64)
    image[:] = FAR
    image[:, : tumour + near] = NEAR
    image[:, :tumour] = TUMOUR
    image += np.random.default_rng(len(name)).integers(-6, 7, image.shape)
    resolution = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    image = np.clip(image, 0, 255).astype(np.uint8)
    tifffile.imwrite(folder / f"{name}.tif", image, tile=(128, 128), **resolution)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, :tumour] = 255
    Image.fromarray(mask).save(folder / f"{name}_mask.png")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides") / "planted"
    write_slide(folder, "large", 72, near=16)
    write_slide(folder, "small", 24)
    write_slide(folder, "none", 0)
    return folder


@pytest.fixture(scope="module")
def result(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SicRow]]:
    out = tmp_path_factory.mktemp("result")
    encoders = [ENCODER, planted_bands.make_encoder("again")]
    settings = replace(SETTINGS, clicks=(5, 1), runs=3)
    return out, evaluate_sic(slides, encoders, settings, out=out)


def lines(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------------------------------- parts


def test_seeds_are_of_their_class_and_those_of_fewer_clicks_are_among_those_of_more():
    truth = np.arange(50) % 5 == 0
    for run in range(4):
        few, more = (sic_experiment.draw_seeds(truth, m, "slide", run, 0) for m in (1, 3))
        assert (few == 1).sum() == (few == 0).sum() == 1
        assert (more == 1).sum() == (more == 0).sum() == 3
        assert (truth[more == 1]).all() and not truth[more == 0].any()
        assert (more[few >= 0] == few[few >= 0]).all()


def test_seeds_follow_from_slide_run_and_seed_and_reach_every_patch():
    truth = np.arange(40) < 10
    assert (
        sic_experiment.draw_seeds(truth, 3, "a", 1, 7) == sic_experiment.draw_seeds(truth, 3, "a", 1, 7)
    ).all()
    others = [("b", 1, 7), ("a", 2, 7), ("a", 1, 8)]
    assert all(
        (sic_experiment.draw_seeds(truth, 3, *o) != sic_experiment.draw_seeds(truth, 3, "a", 1, 7)).any()
        for o in others
    )
    drawn = np.stack([sic_experiment.draw_seeds(truth, 1, "a", run, 0) >= 0 for run in range(400)]).sum(0)
    # 400 draws among 10 and among 30: within five standard deviations.
    assert np.abs(drawn[:10] - 40).max() < 30 and np.abs(drawn[10:] - 400 / 30).max() < 18


def test_a_class_with_fewer_patches_than_seeds_gives_all_it_has():
    truth = np.arange(20) < 2
    y = sic_experiment.draw_seeds(truth, 5, "slide", 0, 0)
    assert (y[:2] == 1).all() and (y == 0).sum() == 5


def test_scores_are_scikit_learns(monkeypatch):
    truth = np.random.default_rng(3).random(49) < 0.3
    X = np.random.default_rng(4).normal(size=(49, 3)).astype(np.float32) + truth[:, None]
    answers = []
    monkeypatch.setattr(
        sic_experiment.sic,
        "fit",
        lambda *a, fit=sic_experiment.sic.fit, **k: answers.append(fit(*a, **k)) or answers[-1],
    )
    trial = sic_experiment.try_seeds(X, truth, "e", "s", 3, 4, 0)
    assert trial.seeds == (3, 3) and trial.positive == truth.sum() and trial.negative == (~truth).sum()
    expected = [f1_score(truth, np.asarray(answer.labels)[: len(truth)]) for answer in answers]
    np.testing.assert_allclose(trial.f1, expected)
    assert trial.cuts.tolist() == [answer.iterations for answer in answers]
    assert trial.everything_positive == pytest.approx(f1_score(truth, np.ones(49)))


def test_the_best_run_of_each_slide_then_mean_and_deviation_over_slides():
    def trial(slide: str, f1: list[float], one_pass: list[float], positive: int) -> SicTrial:
        nothing = np.zeros(len(f1))
        scores = (np.array(f1), np.array(one_pass), nothing, nothing.astype(int))
        return SicTrial("e", slide, 3, 10 - positive, positive, (3, 3), *scores)

    trials = [trial("a", [0.2, 0.8, 0.5], [0.1, 0.1, 0.4], 5), trial("b", [0.6, 0.0, 0.3], [0.2] * 3, 2)]
    (row,) = sic_experiment.summarise(trials)
    assert (row.encoder, row.clicks, row.slides) == ("e", 3, 2)
    assert row.best == pytest.approx((0.7, np.sqrt(0.02)))  # of 0.8 and 0.6
    assert row.mean == pytest.approx((0.4, np.sqrt(0.02)))  # of 0.5 and 0.3
    assert row.one_pass_best == pytest.approx((0.3, np.sqrt(0.02)))  # of 0.4 and 0.2
    assert row.one_pass_mean == pytest.approx((0.2, 0))
    assert row.everything_positive.mean == pytest.approx((2 / 3 + 1 / 3) / 2)  # p = 1/2 and 1/5
    assert sic_experiment.summarise(trials[:1])[0].best == (0.8, None)


# ---------------------------------------------------------------------------------------------- whole


def test_planted_tumours_are_found_and_only_the_iteration_finds_them(result):
    _, rows = result
    assert [(r.encoder, r.clicks) for r in rows] == [(e, c) for e in ("colours", "again") for c in (1, 5)]
    for row in rows:
        assert row.slides == 2
        assert row.best.mean > 0.95 and row.best.mean >= row.mean.mean
        assert row.best.mean > row.one_pass_mean.mean + 0.15
    # The same slides and the same seeds for every encoder.
    assert [replace(row, encoder="again") for row in rows[:2]] == rows[2:]


def test_what_is_written(result):
    out, rows = result
    files = {"results.csv", "results.md", "slides.csv", "evaluation.json", "embeddings"}
    assert {p.name for p in out.iterdir()} == files | {"figure_sic.png", "figure_sic.svg"}
    table = lines(out / "results.csv")
    assert [float(line["f1_best"]) for line in table] == [round(row.best.mean, 5) for row in rows]
    runs = lines(out / "slides.csv")
    assert len(runs) == 2 * 2 * 2 * 3  # encoders, slides, clicks, runs
    best = {
        s: max(float(r["f1"]) for r in runs if r["slide"] == s and r["clicks"] == "1")
        for s in ("large", "small")
    }
    assert np.mean(list(best.values())) == pytest.approx(rows[0].best.mean, abs=1e-4)
    # Patches begin every 16 pixels: of the small tumour's 24 columns those at 0 have 24, those at 16 have 8.
    small = next(r for r in runs if r["slide"] == "small")
    assert (small["positive_patches"], small["negative_patches"]) == ("7", "42")
    text = (out / "results.md").read_text()
    assert "best of 3" in text and "everything positive" in text and "none (no patch is positive)" in text
    assert "nan" not in text
    record = json.loads((out / "evaluation.json").read_text())
    assert record["dataset"]["left_out"] == {"none": "no patch is positive"}
    assert record["setting"]["clicks"] == [1, 5] and record["setting"]["patches"]["patch"] == 32
    newest = max(p.stat().st_mtime_ns for p in out.iterdir() if p.is_file())
    assert (out / "evaluation.json").stat().st_mtime_ns == newest
    with Image.open(out / "figure_sic.png") as figure:
        assert np.asarray(figure.convert("L")).std() > 20 and figure.width > 1000


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sic_report, "_draw", lambda *_: None)


@pytest.mark.usefixtures("undrawn")
def test_embeddings_are_kept_while_they_are_true(slides, tmp_path, monkeypatch):
    slides = shutil.copytree(slides, tmp_path / "slides")
    embedded = []
    monkeypatch.setattr(
        sic_experiment,
        "embed_slide",
        lambda s, *a, embed=sic_experiment.embed_slide, **k: (embedded.append(s.name), embed(s, *a, **k)),
    )

    def run(patches: PatchSettings = PATCHES, encoder=ENCODER) -> list[str]:
        embedded.clear()
        settings = SicSettings(clicks=(3,), runs=1, patches=patches)
        evaluate_sic(slides, [encoder], settings, out=tmp_path, overwrite=True)
        return list(embedded)

    everything = ["large", "none", "small"]
    assert run() == everything
    first = (tmp_path / "slides.csv").read_bytes()
    assert run(replace(PATCHES, batch=3, threads=1)) == [] and (tmp_path / "slides.csv").read_bytes() == first
    assert run(replace(PATCHES, overlap=0.25)) == everything
    other = planted_bands.ColourEncoder(replace(ENCODER.card, weights_hash="1" * 64))
    assert run(replace(PATCHES, overlap=0.25), other) == everything
    (tmp_path / "embeddings/colours/small.embeddings.json").write_text("[")
    assert run(replace(PATCHES, overlap=0.25), other) == ["small"]
    shutil.rmtree(tmp_path / "embeddings/colours/none.embeddings.zarr")
    assert run(replace(PATCHES, overlap=0.25), other) == ["none"]
    small = next(slides.glob("small.*"))
    small.write_bytes(small.read_bytes() + bytes(1))
    os.utime(small, (0, 0))  # another slide, though an old one
    assert run(replace(PATCHES, overlap=0.25), other) == ["small"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["../../outside", "timm:resnet10t", ".."])
def test_embeddings_stay_in_their_folder_whatever_the_encoder_is_called(slides, tmp_path, name):
    out = tmp_path / "a" / "out"
    settings = replace(SETTINGS, clicks=(1,), runs=1)
    evaluate_sic(slides, [planted_bands.make_encoder(name)], settings, out=out)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and [p.name for p in out.parent.iterdir()] == ["out"]
    (folder,) = (out / "embeddings").iterdir()
    assert (folder / "small.embeddings.json").exists()


def test_a_folder_with_results_and_one_that_holds_no_tumour(slides, result, tmp_path):
    out, _ = result
    with pytest.raises(InputError, match=r"evaluation\.json exists.*--overwrite"):
        evaluate_sic(slides, [ENCODER], SETTINGS, out=out)
    write_slide(tmp_path / "slides", "none", 0)
    with pytest.raises(InputError, match="no slide has patches of both classes"):
        evaluate_sic(tmp_path / "slides", [ENCODER], SETTINGS, out=tmp_path / "out")
    assert not (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"encoders": []}, "name each of those to evaluate, once"),
        ({"encoders": [ENCODER, ENCODER]}, "name each of those to evaluate, once"),
        ({"clicks": ()}, "one at least is needed"),
        ({"clicks": (0, 1)}, "clicks 0, 1, 5 runs: one at least"),
        ({"runs": 0}, "0 runs: one at least"),
        ({"patches": replace(PATCHES, patch=30)}, "multiple of colours's stride"),
    ],
)
def test_settings_that_cannot_be(slides, tmp_path, wrong, says):
    encoders = wrong.get("encoders", [ENCODER])
    settings = replace(SETTINGS, **{key: value for key, value in wrong.items() if key != "encoders"})
    with pytest.raises(InputError, match=says) as caught:
        evaluate_sic(slides, encoders, settings, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "evaluation.json").exists()
