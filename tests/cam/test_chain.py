"""The whole method on a folder where what is to be found is planted, and each way it can go wrong."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from planted_squares import configure_tiny

from fseg_jax import cli
from fseg_jax.cam import classifier_training, train_classifier
from fseg_jax.cam.classifier import ClassifierSettings
from fseg_jax.cam.classifier_file import load_classifier
from fseg_jax.cam.heat_mapper import HeatMapper, MaskSettings
from fseg_jax.cam.image_labels import read_labels
from fseg_jax.cam.propagate_labels import PropagationSettings, propagate_folder
from fseg_jax.cam.segment_images import segment_files
from fseg_jax.cam.train_classifier import train_folder
from fseg_jax.errors import InputError

QUICK = ClassifierSettings(size=32, epochs=5, batch=8, learning_rate=1e-2)


@pytest.fixture(autouse=True, scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_training, "configure_network", configure_tiny)
        yield


def picture(rng: np.random.Generator, polyp: bool) -> tuple[np.ndarray, np.ndarray]:
    """Reddish noise, with a bright disc in it or not, and where the disc is."""
    image = rng.integers(40, 110, (64, 64, 3)).astype(np.uint8)
    image[..., 0] += 60
    y, x = np.mgrid[:64, :64]
    disc = np.hypot(y - rng.integers(16, 48), x - rng.integers(16, 48)) < 12
    if polyp:
        image[disc] = 240
    return image, disc & polyp


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """12 + 12 labelled images, 12 unlabelled; the truth of the polyps beside them."""
    root, rng = tmp_path_factory.mktemp("chain"), np.random.default_rng(0)
    for i in range(36):
        polyp = bool(i % 2)
        image, disc = picture(rng, polyp)
        label = "unlabelled" if i >= 24 else ("polyp" if polyp else "normal")
        save(root / "images" / label / f"{i:02d}.png", image)
        if polyp:
            save(root / "pairs" / "images" / f"{i:02d}.png", image)
            save(root / "pairs" / "masks" / f"{i:02d}.png", disc.astype(np.uint8) * 255)
    return root


@pytest.fixture(scope="module")
def trained(folder):
    images = read_labels(folder / "images")
    spread = propagate_folder(images, folder / "spread", PropagationSettings(k=6, held_out=8))
    train_folder(spread.images, folder / "trained", QUICK)
    return load_classifier(folder / "trained")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fseg(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return exit_.value.code


def test_labels_spread_to_what_looks_alike_and_every_image_is_accounted_for(folder, trained):
    table = rows(folder / "spread" / "labels.csv")
    assert len(table) == 36
    assert sum(row["held_out"] == "yes" for row in table) == 6  # a quarter of each class
    joined = [row for row in table if row["source"].startswith("round")]
    right = [row["label"] == ("polyp" if int(Path(row["image"]).stem) % 2 else "normal") for row in joined]
    assert joined and all(right)
    said = json.loads((folder / "spread" / "propagation.json").read_text())
    rounds = rows(folder / "spread" / "rounds.csv")
    assert said["rounds"] == len(rounds) and sum(int(r["joined"]) for r in rounds) == len(joined)
    again = read_labels(folder / "images", folder / "spread" / "labels.csv")
    assert again.held_out.sum() == 6 and (again.labels >= 0).sum() == sum(bool(r["label"]) for r in table)


def test_the_training_says_what_it_did(folder, trained):
    said = json.loads((folder / "trained" / "training.json").read_text())
    history = rows(folder / "trained" / "history.csv")
    assert len(history) == 5 and said["held_out"] == {"normal": 3, "polyp": 3}
    assert sum(said["trained_on"].values()) + 6 <= 36
    best = max(float(row["held_out_accuracy"]) for row in history)
    assert said["held_out_accuracy"] == pytest.approx(best, abs=1e-4)
    assert said["epoch_kept"] == next(
        int(row["epoch"]) for row in history if float(row["held_out_accuracy"]) == best
    )
    assert trained.card.epoch == said["epoch_kept"]
    assert [p.name for p in (folder / "trained" / "checkpoints").iterdir()] == ["epoch-005.safetensors"]
    assert load_classifier(folder / "trained" / "checkpoints" / "epoch-005.safetensors").card.epoch == 5


def test_a_training_goes_on_where_it_was_stopped(folder, trained, tmp_path, monkeypatch):
    images = read_labels(folder / "images", folder / "spread" / "labels.csv")
    out, real, numbers = tmp_path / "out", classifier_training.train_epochs, []

    def stopped(*arguments):
        for epoch in real(*arguments):
            numbers.append(epoch.number)
            yield epoch
            if len(numbers) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(classifier_training, "train_epochs", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_folder(images, out, QUICK)
    assert not (out / "training.json").exists()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_classifier, "write_json", killed)
        train_folder(images, out, QUICK)
    assert numbers == [1, 2, 3, 4, 5] and [path.name for path in out.iterdir()] == [
        train_classifier.UNFINISHED
    ]
    train_folder(images, out, QUICK)  # nothing is left to be trained
    assert numbers == [1, 2, 3, 4, 5] and not (out / train_classifier.UNFINISHED).exists()
    for name in ("history.csv", "classifier.safetensors"):
        assert (out / name).read_bytes() == (folder / "trained" / name).read_bytes()
    with pytest.raises(InputError, match="exists: give --overwrite"):
        train_folder(images, out, QUICK)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(classifier_training, "train_epochs", killed)
    with pytest.raises(KeyboardInterrupt):
        train_folder(images, out, QUICK, overwrite=True)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_masks_pictures_and_table_of_a_folder(folder, trained, tmp_path):
    source = tmp_path / "in"
    shutil.copytree(folder / "pairs" / "images", source)
    image = np.asarray(Image.open(source / "01.png"))
    Image.fromarray(image[..., 0]).save(source / "grey.png")
    Image.fromarray(np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])).save(source / "rgba.png")
    Image.fromarray(image[:50, :40]).save(source / "small.jpg")
    (source / "broken.png").write_bytes(b"\x89PNG broken")
    out = tmp_path / "out"
    code = fseg("cam", "segment", source, "-o", out, "--classifier", folder / "trained", "--layer", "1")
    assert code == 2  # one image is missing
    table = rows(out / "masks.csv")
    assert len(table) == 21 and "broken.png" not in {row["image"] for row in table}
    assert json.loads((out / "masks.json").read_text())["unreadable"] == [str(source / "broken.png")]
    for row in table:
        with Image.open(out / row["mask"]) as mask, Image.open(source / row["image"]) as of:
            assert mask.size == of.size and set(np.unique(mask)) <= {0, 255}
            assert int(row["pixels"]) == np.count_nonzero(mask)
    np.testing.assert_array_equal(
        *(np.asarray(Image.open(out / "masks" / n)) for n in ("rgba.png", "01.png"))
    )
    assert len(list((out / "overlays").iterdir())) == 21
    assert fseg("cam", "segment", source, "-o", out, "--classifier", folder / "trained") == 2


def test_images_of_many_sizes_take_one_program(trained):
    mapper = HeatMapper(trained, MaskSettings(layer="blocks.1", tiles=2))
    mapper(np.zeros((64, 64, 3), np.uint8))
    compiled: list[str] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for side in range(20, 60):
            heat, _ = mapper(np.full((side, 90 - side, 3), side, np.uint8))
            assert heat.shape == (side, 90 - side)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_tiles_rejection_and_the_other_class(trained, folder):
    image = np.asarray(Image.open(folder / "pairs" / "images" / "01.png"))
    base = MaskSettings(layer="blocks.1", of_class="polyp")
    whole, chance = HeatMapper(trained, base)(image)
    _, other = HeatMapper(trained, replace(base, of_class="normal"))(image)
    assert chance + other == pytest.approx(1, abs=1e-5)
    tiled, _ = HeatMapper(trained, replace(base, tiles=2))(image)
    quarter, _ = HeatMapper(trained, base)(image[:32, :32])
    np.testing.assert_allclose(tiled[:32, :32], quarter, atol=1e-4)
    one_piece, _ = HeatMapper(trained, replace(base, tiles=2, whole=True))(image)
    twice, _ = HeatMapper(replace(trained, size=2 * trained.size), base)(image)
    np.testing.assert_array_equal(one_piece, twice)
    rejected, _ = HeatMapper(trained, replace(base, reject=True))(image)
    assert (rejected == (whole if chance >= 0.5 else 0)).all()
    with pytest.raises(InputError, match="cannot be cut into 2"):
        HeatMapper(trained, replace(base, tiles=2))(image[:1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": "blocks.7"}, "--layer blocks.7"),
        ({"lower": 0.7, "upper": 0.4}, "thresholds 0.7 and 0.4"),
        ({"of_class": "cat"}, "--class cat"),
        ({"largest": 0}, "--largest"),
    ],
)
def test_settings_that_cannot_be_are_an_error(trained, settings, message):
    with pytest.raises(InputError, match=message):
        HeatMapper(trained, replace(MaskSettings(layer="top"), **settings))


def test_two_images_of_one_name_are_an_error(trained, tmp_path):
    with pytest.raises(InputError, match="two images are called 'a'"):
        segment_files(
            [Path("a.png"), Path("a.jpg")], ["a", "a"], trained, tmp_path, MaskSettings(layer="top")
        )


# ------------------------------------------------------------------------------------- what can be wrong


def test_none_labelled_one_class_and_too_many_clusters(folder, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(folder / "images" / "polyp", flat)
    with pytest.raises(InputError, match="no image is labelled"):
        propagate_folder(read_labels(flat), tmp_path / "a", PropagationSettings(k=2))
    with pytest.raises(InputError, match="no image is labelled"):
        train_folder(read_labels(flat), tmp_path / "b", QUICK)
    one = tmp_path / "one"
    shutil.copytree(flat, one / "polyp")
    shutil.copytree(folder / "images" / "unlabelled", one / "unlabelled")
    found = propagate_folder(read_labels(one), tmp_path / "c", PropagationSettings(k=2, held_out=0))
    assert set(found.images.labels.tolist()) <= {-1, 0}
    with pytest.raises(InputError, match="of the class 'polyp': a classifier needs two"):
        train_folder(found.images, tmp_path / "d", QUICK)
    with pytest.raises(InputError, match="--k 99: there are 24 images to cluster"):
        propagate_folder(read_labels(one), tmp_path / "e", PropagationSettings(k=99, held_out=0))
    assert not (tmp_path / "e" / "labels.csv").exists()


def test_all_labelled_is_nothing_to_spread(folder, tmp_path):
    source = tmp_path / "in"
    for label in ("polyp", "normal"):
        shutil.copytree(folder / "images" / label, source / label)
    found = propagate_folder(read_labels(source), tmp_path / "out", PropagationSettings(held_out=0, k=5))
    assert found.record.ended == "all images are labelled" and found.record.rounds == 0
    assert rows(tmp_path / "out" / "rounds.csv") == []


def test_an_unreadable_image_is_left_out_of_both(folder, tmp_path, caplog):
    source = tmp_path / "in"
    shutil.copytree(folder / "images", source)
    (source / "polyp" / "broken.png").write_bytes(b"no")
    found = propagate_folder(read_labels(source), tmp_path / "a", PropagationSettings(k=6))
    assert "broken.png" in caplog.text and len(found.images.files) == 36
    record = train_folder(read_labels(source), tmp_path / "b", replace(QUICK, epochs=1))
    assert record.unreadable == (str(source / "polyp" / "broken.png"),)


def test_deep_features_of_an_encoder(folder, tmp_path):
    found = propagate_folder(
        read_labels(folder / "images"), tmp_path / "a", PropagationSettings(k=6, features="classical")
    )
    assert found.record.settings.features == "classical" and found.record.rounds > 0


def test_features_on_one_scale(folder, tmp_path):
    read = read_labels(folder / "images")
    found = propagate_folder(read, tmp_path / "a", PropagationSettings(k=6, features="lire-even"))
    assert found.record.settings.features == "lire-even" and found.record.rounds > 0


def test_no_more_images_than_asked_for(folder, tmp_path):
    images = read_labels(folder / "images")
    record = train_folder(images, tmp_path, replace(QUICK, epochs=1), most=7, held_out=4)
    assert sorted(record.trained_on.values()) == [3, 4] and sum(record.held_out.values()) == 4


# ------------------------------------------------------------------------------------ the command line


def test_the_chain_from_the_command_line(folder, tmp_path, capsys):
    spread, out = tmp_path / "spread", tmp_path / "trained"
    images = folder / "images"
    assert fseg("cam", "propagate", images, "-o", spread, "--k", 6, "--held-out", 8) == 0
    small = ("--size", 32, "--epochs", 2, "--training-batch", 8, "--learning-rate", 0.01)
    assert fseg("cam", "train", images, "--labels", spread / "labels.csv", "-o", out, *small) == 0
    said, record = capsys.readouterr().out, json.loads((out / "training.json").read_text())
    right = round(record["held_out_accuracy"] * sum(record["held_out"].values()))
    assert f"{right} of {sum(record['held_out'].values())} images held out are right" in said
    assert f"they chose epoch {record['epoch_kept']}, so this is a little too good" in said
    pairs = folder / "pairs"
    chosen = ("--layer", "top", "--method", "concepts", "--choose", pairs, "--largest", 1, "--fill-holes")
    assert fseg("cam", "segment", pairs / "images", "-o", tmp_path / "m", "--classifier", out, *chosen) == 0
    assert f"the best there is on {pairs}; on other images expect less" in capsys.readouterr().out
    table = tmp_path / "table.md"
    assert fseg("cam", "evaluate", tmp_path / "m" / "masks", pairs / "masks", "-o", table) == 0
    assert capsys.readouterr().out == table.read_text() and "centre disc" in table.read_text()


@pytest.mark.long
def test_the_runs_are_repeated_on_a_dataset(folder, tmp_path, capsys):
    run = tmp_path / "own.py"
    run.write_text(
        "from fseg_jax.cam.runs import Run\n"
        "RUN = Run('own', 'tiles', k=5, layer='top', lower=0.3, upper=None, labelled=6)\n"
    )
    small = ("--size", 32, "--epochs", 1, "--training-batch", 8, "--validation", 4)
    given = ("cam", "reproduce", folder / "pairs", "-o", tmp_path / "out", "--run", run, *small)
    assert fseg(*given) == 0
    text = capsys.readouterr().out
    assert "## Table 1" in text and "#own ours" in text and "centre disc" in text
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    split = result["split"]
    assert [len(split[part]) for part in ("development", "validation", "test")] == [10, 4, 4]
    assert not set(split["test"]) & (set(split["development"]) | set(split["validation"]))
    assert [(row["method"], row["whole"], row["chosen"]) for row in result["runs"][0]["rows"]] == [
        ("grad-cam", False, False),
        ("grad-cam", False, True),
        ("grad-cam", True, True),
        ("grad-cam++", True, True),
        ("concepts", True, True),
    ]
    assert result["runs"][0]["propagation"]["given"] == {"non-polyp": 6, "polyp": 6}
    weights = (tmp_path / "out" / "tiles-k5-to-1000" / "classifier.safetensors").stat().st_mtime_ns
    assert fseg(*given) == 0  # what is done is not done again
    assert (tmp_path / "out" / "tiles-k5-to-1000" / "classifier.safetensors").stat().st_mtime_ns == weights
    assert fseg(*given, "--epochs", 2) == 2
    assert "made with other settings" in capsys.readouterr().err


def test_runs_on_whole_images_take_negatives(folder, tmp_path):
    from fseg_jax.cam.reproduce import reproduce
    from fseg_jax.cam.runs import ReproductionSettings, Run

    (result,) = reproduce(
        folder / "pairs",
        tmp_path,
        [Run("2", "images", k=4, layer="top", lower=0.4, upper=0.7, labelled=5)],
        ReproductionSettings(replace(QUICK, epochs=1), validation=4, methods=()),
        negatives=folder / "images" / "normal",
        unlabelled=folder / "images" / "unlabelled",
    )
    assert result.source == "images" and result.classifier.propagation.given == {"non-polyp": 5, "polyp": 5}
    assert len(result.rows) == 1 and result.classifier.training.held_out == {"non-polyp": 3, "polyp": 4}


@pytest.mark.smoke
def test_the_papers_runs_are_the_papers():
    from fseg_jax.cam.runs import RUNS, load_run

    runs = [load_run(name) for name in RUNS]
    assert [(r.k, r.layer, r.lower, r.upper) for r in runs] == [
        (50, "blocks.14", 0.4, 0.7),
        (200, "blocks.13", 0.4, 0.7),
        (200, "blocks.14", 0.4, 0.7),
        (250, "blocks.20", 0.28, None),
        (250, "blocks.22", 0.28, None),
    ]
    assert [r.source for r in runs] == ["tiles"] + ["images"] * 4
    with pytest.raises(InputError, match="give 1 to 5"):
        load_run("6")


def test_mistakes_are_one_line(folder, tmp_path, capsys):
    for arguments, message in (
        (("propagate", tmp_path / "none", "-o", tmp_path / "o"), "no such folder"),
        (("train", folder / "images", "-o", tmp_path / "o", "--network", "vgg"), "--network vgg"),
        (("segment", folder / "images", "-o", tmp_path / "o", "--classifier", tmp_path), "cannot be read"),
        (("evaluate", tmp_path / "a", tmp_path / "b"), "no such folder"),
        (("reproduce", folder / "images", "-o", tmp_path / "o"), "Kvasir-SEG's layout"),
    ):
        assert fseg("cam", *arguments) == 2
        err = capsys.readouterr().err.strip()
        assert err.startswith("fseg: error: ") and message in err and "\n" not in err
    assert not (tmp_path / "o").exists()
