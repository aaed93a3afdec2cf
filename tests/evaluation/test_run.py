"""The whole experiment where the answer is known, and what it writes."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import planted_bands
import pytest
from PIL import Image

from fseg_jax.encoders import encoder
from fseg_jax.encoders.classical import classical
from fseg_jax.errors import InputError
from fseg_jax.evaluation import run
from fseg_jax.evaluation.data.encoded_dataset import encode_dataset
from fseg_jax.evaluation.data.layouts import open_dataset
from fseg_jax.evaluation.data.mask_codes import IGNORED
from fseg_jax.evaluation.protocols import counts
from fseg_jax.evaluation.report import plots
from fseg_jax.evaluation.results import EvaluationRow
from fseg_jax.evaluation.run import evaluate_fseg
from fseg_jax.evaluation.settings import EvaluationSettings
from fseg_jax.methods import fseg
from fseg_jax.numerics import nmf

# Under this name no other encoder is added to it.
ALONE = [planted_bands.make_encoder("classical")]
QUICK = EvaluationSettings(k=(3,), starts=1, concepts=3, panels=0, thresholds=(0.5,))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all else here, and ``result`` has them."""
    for name in ("write_matching", "write_probing"):
        monkeypatch.setattr(plots, name, lambda *_: None)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[EvaluationRow]]:
    folder = tmp_path_factory.mktemp("planted")
    dataset = open_dataset(planted_bands.write_dataset(folder / "data"))
    reports: list[tuple[str, int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        # What is added under this name is of the same shapes here, so that nothing compiles for it.
        patch.setattr(run, "classical", lambda: planted_bands.make_encoder("classical"))
        rows = evaluate_fseg(
            dataset,
            [planted_bands.make_encoder()],
            EvaluationSettings(
                k=(3,), starts=2, concepts=3, thresholds=(0.5, 0.9), same_split=True, panels=2
            ),
            out=folder / "out",
            progress=lambda *each: reports.append(each),
        )
    assert reports[-1][1] == reports[-1][2]
    return folder / "out", rows


def test_planted_categories_are_found_by_matching_and_probing(
    result: tuple[Path, list[EvaluationRow]],
) -> None:
    own = [row for row in result[1] if row.encoder == "colours"]
    best = [row for row in own if row.protocol.endswith("matching")]
    assert len(best) == 3 * 2 * 2 * 2  # modes, centres, matchings, splits learnt on
    for row in best:
        least = 0.95 if row.mode == "nearest" else 0.98  # cosines blur the borders
        assert row.f1 >= least, row
        assert row.f1_interval and row.f1_interval.low >= least - 0.01
        assert all(each and each.f1 >= least - 0.01 for each in row.scores.categories)
    probed = [row for row in own if row.protocol.endswith("probing")]
    assert len(probed) == 4 and all(row.f1 >= 0.98 for row in probed)
    assert all(sum(row.pairs or ()) > 80 for row in probed)


@pytest.mark.usefixtures("undrawn")
def test_shuffled_labels_fall_to_chance(tmp_path: Path) -> None:
    dataset = open_dataset(planted_bands.write_dataset(tmp_path / "data", images=30, shuffled=True))
    settings = EvaluationSettings(k=(3,), starts=1, concepts=3, panels=0)
    rows = evaluate_fseg(dataset, ALONE, settings, out=tmp_path / "out")
    assert max(row.f1 for row in rows) < 0.45
    assert all(abs(row.ari) < 0.1 for row in rows)


def test_rows_beside_f_seg(result: tuple[Path, list[EvaluationRow]]) -> None:
    rows = result[1]
    assert {row.encoder for row in rows} == {"colours", "classical"}  # colour only is added
    kinds = {(row.mode, row.centers) for row in rows if row.protocol == "matching"}
    assert kinds == {(m, c) for m in ("fixed", "assign", "nearest") for c in ("tiles", "tokens")}
    for row in rows:
        gains = row.mode in ("fixed", "assign")
        assert (row.gain is not None) == gains and (row.gain_interval is not None) == gains
        assert (row.f1_spread is not None) == row.protocol.endswith("matching")
    row = next(row for row in rows if row.mode == "fixed")
    (nearest,) = (
        other
        for other in rows
        if (other.encoder, other.mode) == ("colours", "nearest")
        and (other.centers, other.k, other.protocol, other.learnt_on)
        == (row.centers, row.k, row.protocol, row.learnt_on)
    )
    assert row.gain == pytest.approx(row.f1 - nearest.f1)


def test_what_is_written(result: tuple[Path, list[EvaluationRow]]) -> None:
    out, rows = result
    files = {"results.csv", "results.md", "evaluation.json", "panels"}
    files |= {f"figure_{name}.{kind}" for name in ("matching", "probing") for kind in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == files  # the features are gone
    with (out / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows)
    assert not any(value in ("nan", "NaN", "None") for line in lines for value in line.values())
    text = (out / "results.md").read_text()
    assert "What the factorization buys" in text and "has the higher F1 in" in text and "nan" not in text
    record = json.loads((out / "evaluation.json").read_text())
    assert record["setting"]["k"] == [3] and record["dataset"]["splits"]["test"]["images"] == 30
    assert len(record["rows"]) == len(rows)
    newest = max(path.stat().st_mtime_ns for path in out.iterdir() if path.is_file())
    assert (out / "evaluation.json").stat().st_mtime_ns == newest
    with Image.open(out / "figure_matching.png") as figure:
        assert np.asarray(figure.convert("L")).std() > 20 and figure.width > 900
    panels = sorted((out / "panels").iterdir())
    assert len(panels) == 2
    with Image.open(panels[0]) as panel:
        assert np.asarray(panel.convert("RGB")).std() > 20 and panel.width > 1200


@pytest.mark.usefixtures("undrawn")
def test_results_repeat_themselves(tmp_path: Path) -> None:
    dataset = open_dataset(planted_bands.write_dataset(tmp_path / "data", images=30))
    settings = replace(QUICK, modes=("assign",))
    first = evaluate_fseg(dataset, ALONE, settings, out=tmp_path / "1")
    second = evaluate_fseg(dataset, ALONE, settings, out=tmp_path / "2")
    for row, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(row.matrices, other.matrices)
        assert row == other
    assert (tmp_path / "1/results.csv").read_bytes() == (tmp_path / "2/results.csv").read_bytes()
    with pytest.raises(InputError, match=r"evaluation\.json exists"):
        evaluate_fseg(dataset, ALONE, settings, out=tmp_path / "1")


def test_every_pixel_of_a_large_image_counts_once_and_truth_lies_under_its_labels(tmp_path: Path) -> None:
    folder = planted_bands.write_dataset(tmp_path / "data", images=2)
    rng = np.random.default_rng(0)
    plan = rng.integers(0, 3, (21, 29))  # 3 × 4 tiles of 64, the last ones moved back inside
    pixels = np.kron(plan, np.ones((8, 8), int))[:165, :230]
    Image.fromarray(planted_bands.COLOURS[pixels]).save(folder / "images" / "test-large.png")
    Image.fromarray((pixels + 1).astype(np.uint8)).save(folder / "masks" / "test-large.png")
    dataset = open_dataset(folder)
    encoded = encode_dataset(dataset, planted_bands.make_encoder(), tmp_path)
    large = next(i for i, item in enumerate(dataset.items) if item.name == "test-large")
    members = np.flatnonzero(encoded.item_of == large)
    assert len(members) == 3 * 4
    assert sum((encoded.categories(int(t)) != IGNORED).sum() for t in members) == 165 * 230
    centres = jnp.eye(3)
    found = counts.count_clusters(encoded, counts.score_nearest, centres, len(dataset.items), 3)
    assert (found.sum((1, 2)) == dataset.pixels.sum(1)).all()
    # Tokens of the tiles that were moved back straddle two colours of the plan; all others are right.
    assert np.trace(found[large]) / found[large].sum() > 0.75


def mean_colours(weights: None, x: jax.Array) -> jax.Array:
    b, height, width, _ = x.shape
    return x.reshape(b, height // 8, 8, width // 8, 8, 3).mean((2, 4))


def test_tiles_of_many_sizes_share_programs_and_count_as_they_do_alone(tmp_path: Path) -> None:
    folder = planted_bands.write_dataset(tmp_path / "data", images=2)
    rng = np.random.default_rng(0)
    sizes = [(12 + 5 * n, 60 - 4 * n) for n in range(9)]
    for height, width in sizes:
        pixels = np.kron(rng.integers(0, 3, (8, 8)), np.ones((8, 8), int))[:height, :width]
        name = f"test-{height}.png"
        Image.fromarray(planted_bands.COLOURS[pixels]).save(folder / "images" / name)
        Image.fromarray((pixels + 1).astype(np.uint8)).save(folder / "masks" / name)
    dataset = open_dataset(folder)
    jitted = (encoder._encode, nmf._solve, nmf._draw_start, nmf._factorize, counts._label_frames)
    before = [function._cache_size() for function in jitted]
    colours = encoder.JaxEncoder(planted_bands.make_encoder().card, mean_colours, None)
    encoded = encode_dataset(dataset, colours, tmp_path)
    key, centres = jax.random.key(0), jnp.asarray(planted_bands.COLOURS / 255, jnp.float32)
    found = counts.count_clusters(encoded, counts.score_fixed, centres, len(dataset.items), 3)
    concepts = counts.find_concepts(encoded, 3, 3, key)
    assert len({batch.frame for batch in encoded.batches()}) == 2
    made = [function._cache_size() - n for function, n in zip(jitted, before, strict=True)]
    assert max(made) <= 2, made  # of the whole tiles and of the smaller ones

    some = [t for t, tile in enumerate(encoded.tiles) if (tile.rows, tile.columns) == (3, 7)]
    assert len(some) == 2
    for t in some:
        grid = jnp.asarray(encoded.tokens(t)[None])
        A = grid.reshape(1, -1, 3)
        alone = nmf.factorize(A, 3, key=key)
        np.testing.assert_allclose(concepts.H[t], alone.H[0], rtol=1e-3, atol=1e-4)
        W = nmf.solve_weights(A, centres).reshape(*grid.shape[:3], 3)
        labels = fseg.label_pixels(jnp.pad(W, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge"), 8)[0]
        own = counts._count_pixels(np.asarray(labels), encoded.categories(t), 3, 3)
        np.testing.assert_array_equal(found[encoded.item_of[t]], own)


@pytest.mark.usefixtures("undrawn")
def test_images_are_worked_on_at_the_encoders_resolution(tmp_path: Path) -> None:
    yaml = planted_bands.YAML + "mpp: 0.5"
    dataset = open_dataset(planted_bands.write_dataset(tmp_path / "data", images=30, side=128, yaml=yaml))
    encoded = encode_dataset(dataset, planted_bands.make_encoder(), tmp_path, scale=0.5)
    assert set(encoded.sizes) == {(64, 64)}
    rows = evaluate_fseg(dataset, ALONE, QUICK, out=tmp_path / "out")
    assert max(row.f1 for row in rows) > 0.9
    assert rows[0].scores.categories[0] is not None
    assert sum(c.pixels for c in rows[0].scores.categories if c) == 30 * 63 * 64  # two rows are ignored


@pytest.mark.usefixtures("undrawn")
def test_a_category_without_pixels_is_reported_as_absent(tmp_path: Path) -> None:
    yaml = planted_bands.YAML.replace("ignore", "  - {name: violet, value: 4}\nignore")
    dataset = open_dataset(planted_bands.write_dataset(tmp_path / "data", images=30, yaml=yaml))
    assert dataset.count_pixels("train")[3] == dataset.count_pixels("test")[3] == 0
    rows = evaluate_fseg(dataset, ALONE, QUICK, out=tmp_path / "out")
    assert all(row.scores.categories[3] is None for row in rows)
    assert max(row.f1 for row in rows) > 0.98  # averaged over the three that there are
    text = (tmp_path / "out/results.md").read_text() + (tmp_path / "out/results.csv").read_text()
    assert "absent" in text and "nan" not in text.lower()


@pytest.mark.usefixtures("undrawn")
def test_a_category_of_the_training_split_alone_is_absent_too(tmp_path: Path) -> None:
    folder = planted_bands.write_dataset(tmp_path / "data", images=30)
    for path in (folder / "masks").glob("test-*"):
        mask = np.asarray(Image.open(path)).copy()
        mask[mask == 3] = 0
        Image.fromarray(mask).save(path)
    rows = evaluate_fseg(open_dataset(folder), ALONE, QUICK, out=tmp_path / "out")
    assert all(row.scores.categories[2] is None and row.scores.categories[0] for row in rows)
    assert max(row.f1 for row in rows) > 0.98


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": ()}, "cluster counts from 2 up"),
        ({"k": (1,)}, "cluster counts from 2 up"),
        ({"k": (64,)}, "k = 64: planted has 4 training tiles"),
        ({"modes": ("nmf",)}, "mode nmf: choose of fixed, assign"),
        ({"protocols": ("guessing",)}, "protocol guessing: choose of"),
        ({"thresholds": (0.2,)}, "threshold 0.2"),
        ({"starts": 0}, "0 k-means starts"),
        ({"concepts": 99}, "99 concepts for a tile of 64 tokens"),
        ({"mpp": 0.5}, "does not say its µm per pixel"),
        ({"tile": 3}, "needs 8 pixels"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, wrong: dict, message: str) -> None:
    dataset = open_dataset(planted_bands.write_dataset(tmp_path / "data", images=4))
    settings = replace(EvaluationSettings(k=(2,), starts=1, concepts=3, panels=0), **wrong)
    with pytest.raises(InputError, match=message) as caught:
        evaluate_fseg(dataset, ALONE, settings, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_no_encoder_or_one_twice(tmp_path: Path) -> None:
    dataset = open_dataset(planted_bands.write_dataset(tmp_path / "data", images=4))
    for encoders in ([], [planted_bands.make_encoder(), planted_bands.make_encoder()]):
        with pytest.raises(InputError, match="name each of those to evaluate, once"):
            evaluate_fseg(dataset, encoders, out=tmp_path / "out")


@pytest.mark.usefixtures("undrawn")
def test_ebhi_by_the_classical_encoder(data: Path, tmp_path: Path) -> None:
    """Real tiles, a few: more than all-gland is found, and the pooled counts are the masks'."""
    dataset = open_dataset(data / "ebhi")
    few = list(range(0, len(dataset.items), 60))
    dataset = replace(
        dataset, items=tuple(dataset.items[i] for i in few), pixels=dataset.pixels[few], name="few"
    )
    settings = EvaluationSettings(
        k=(4,), starts=1, modes=("fixed",), protocols=("balanced matching",), panels=0
    )
    rows = evaluate_fseg(dataset, [classical()], settings, out=tmp_path)
    assert all(np.sum(row.confusion) == dataset.count_pixels("test").sum() for row in rows)
    assert max(row.f1 for row in rows) > 0.5


@pytest.mark.long
def test_a_patch_of_5000_pixels_a_side_evaluates_within_2_gb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for name in ("train", "test"):
        coarse = rng.integers(0, 256, (625, 625, 3), np.uint8)
        image = Image.fromarray(coarse).resize((5000, 5000), Image.Resampling.BILINEAR)
        image.save(tmp_path / "data/images" / f"{name}.jpg", quality=85)
        mask = Image.fromarray(rng.integers(1, 4, (20, 20), np.uint8))
        mask.resize((5000, 5000), Image.Resampling.NEAREST).save(tmp_path / "data/masks" / f"{name}.png")
    (tmp_path / "data/dataset.yaml").write_text(planted_bands.YAML)
    program = (
        "import resource, sys; from pathlib import Path;"
        "from fseg_jax.encoders.classical import classical;"
        "from fseg_jax.evaluation.data.layouts import open_dataset;"
        "from fseg_jax.evaluation.run import evaluate_fseg;"
        "from fseg_jax.evaluation.settings import EvaluationSettings;"
        "d = Path(sys.argv[1]);"
        "settings = EvaluationSettings(k=(16, 64), starts=1);"
        "evaluate_fseg(open_dataset(d / 'data'), [classical()], settings, out=d / 'out');"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) / 2**20 < 2
