"""Names from words: right ones where a model is sure, none where it is not, and a file that names take."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fseg_jax import cli
from fseg_jax.codebook import Codebook, Provenance, save_all
from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.cohort.naming import NamingSettings, choose_names, name_clusters_by_words, number_names
from fseg_jax.cohort.prompts import TEMPLATES, parse_prompts
from fseg_jax.cohort.sample_folder import SampleSettings
from fseg_jax.cohort.sample_rows import SampleRows
from fseg_jax.cohort.sampling import sample_cohort
from fseg_jax.cohort.typical_tiles import choose_from_features, choose_from_results
from fseg_jax.encoders.classical import classical
from fseg_jax.errors import InputError
from fseg_jax.numerics.name_scores import score_names
from fseg_jax.outputs.cluster_names import load_names
from fseg_jax.pipeline.segment import FORMAT
from fseg_jax.pipeline.slide_facts import slide_facts
from fseg_jax.slides.reader import open_slide

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "olive": (110, 110, 20), "blue": (20, 20, 200)}
PROMPTS = parse_prompts(b'name,prompt\nred,red\nred,scarlet red\ngreen,green\nblue,"blue, navy"\n', "p.csv")
SETTINGS = SampleSettings(tiles=8, tile=64, tissue="all", pure=False)


class Planted:
    """A model to which an image is its mean colour, and a prompt the colour that it names."""

    name, side, scale = "planted", 32, 25.0

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        assert images.shape[1:] == (32, 32, 3) and images.dtype == np.uint8
        return self._scale(images.mean((1, 2)) - 20)

    def embed_texts(self, prompts):
        named = [next(name for name in ("red", "green", "blue") if name in prompt) for prompt in prompts]
        return self._scale(np.array([COLOURS[name] for name in named], float) - 20)

    @staticmethod
    def _scale(x):
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def write_slide(path: Path, tiles: list[str], side: int = 64) -> Path:
    """Write a slide, at 1 µm, that is a row of tiles, each of one colour."""
    pixels = np.concatenate([np.full((side, side, 3), COLOURS[name], np.uint8) for name in tiles], axis=1)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """A codebook of four colours and of what is not there, and features of two slides in these colours."""
    folder = tmp_path_factory.mktemp("fitted")
    slides = [
        ManifestSlide(
            "a", write_slide(folder / "a.png", ["red", "green", "olive", "red", "green", "green"]), 1.0
        ),
        ManifestSlide(
            "b", write_slide(folder / "b.png", ["red", "olive", "blue", "blue", "blue", "olive"]), 1.0
        ),
    ]
    card = classical().card
    assert sample_cohort(slides, folder / "c.features", classical(), SETTINGS) == {}
    rows = np.asarray(SampleRows(folder / "c.features", ["a", "b"])[0:12], np.float32)
    centers = np.stack([rows[0], rows[1], rows[2], rows[8], rows.max(0) * 9])
    origin = Provenance(encoder="classical", weights_hash=card.weights_hash, layer=card.layer, mpp=1.0)
    save_all(folder / "c.safetensors", {5: Codebook(centers, origin)})
    return folder


def test_clusters_get_the_names_of_what_they_look_like(fitted):
    """Those that are sure: olive lies between red and green, and the last cluster has no tiles."""
    book = Codebook.load(fitted / "c.safetensors")
    tiles = choose_from_features(fitted / "c.features", book, 8, 16)
    named = name_clusters_by_words(tiles, 5, PROMPTS, Planted())
    assert [each.name for each in named] == ["red", "green", "", "blue", ""]
    assert [each.is_sure for each in named] == [True, True, False, True, False]
    assert [(each.tiles, each.slides) for each in named] == [(3, 2), (3, 1), (3, 2), (3, 1), (0, 0)]
    red, _, olive, _, empty = named
    assert red.score == pytest.approx(1, abs=1e-6) and red.agreement == 1 and red.share > 0.999
    assert {olive.best, olive.runner_up} == {"red", "green"} and olive.margin < 0.01 < olive.score
    assert olive.share == pytest.approx(0.5, abs=0.01) and empty.best == "" and np.isnan(empty.score)
    # Neither the batch nor the threads nor the order of the tiles changes what is said of them.
    assert (
        name_clusters_by_words(tiles[::-1], 5, PROMPTS, Planted(), NamingSettings(None, 5, 1))[:4]
        == named[:4]
    )


def test_tiles_come_from_many_slides_before_many_are_of_one(fitted):
    book = Codebook.load(fitted / "c.safetensors")
    first = choose_from_features(fitted / "c.features", book, 2, 16)
    assert [tile.cluster for tile in first] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [Path(tile.slide.path).stem for tile in first if tile.cluster == 0] == ["a", "b"]
    assert {len(tile.places) for tile in first} == {16} and first[0].field == 16  # of a tile of 64 µm
    (whole, *_) = choose_from_features(fitted / "c.features", book, 1, 100)
    assert len(whole.places) == 1 and whole.field == 64


def test_the_field_of_a_token_is_centred_on_it(tmp_path):
    """Tokens of 16 pixels, and fields of 16 µm: each shows the one colour of its token."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    for i, (y, x) in enumerate(np.ndindex(4, 8)):
        pixels[16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = COLOURS[("red", "green", "blue")[(i + y) % 3]]
    Image.fromarray(pixels).save(tmp_path / "s.png")
    settings = SampleSettings(tiles=2, tile=64, tissue="all", pure=False, on="tokens")
    slide = ManifestSlide("s", tmp_path / "s.png", 1.0)
    assert sample_cohort([slide], tmp_path / "f", classical(), settings) == {}
    rows = SampleRows(tmp_path / "f", ["s"])
    sample, X = rows.samples[0], np.asarray(rows[0 : rows.shape[0]], np.float32)
    at = sample.boxes[sample.tiles] + 16 * sample.tokens + 8
    colours = [tuple(pixels[y, x]) for y, x in at]
    expected = ["red", "green", "blue"]
    centers = np.stack([X[[c == COLOURS[name] for c in colours]].mean(0) for name in expected])
    tiles = choose_from_features(tmp_path / "f", Codebook(centers), 4, 16)
    assert len({(tile.cluster, tile.places) for tile in tiles}) == len(tiles) == 12
    named = name_clusters_by_words(tiles, 3, PROMPTS, Planted())
    assert [each.name for each in named] == expected
    assert min(each.score for each in named) > 0.9999


def test_scores_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    tiles, names = (rng.standard_normal(shape) for shape in ((20, 6), (4, 6)))
    clusters = rng.integers(0, 3, 20)
    scores = score_names(tiles, clusters, 4, names, 3.0)
    for j in range(3):
        own = tiles[clusters == j]
        mean = [np.mean([tile @ name for tile in own]) for name in names]
        order = np.argsort(mean)[::-1]
        assert (scores.best[j], scores.runner_up[j]) == (order[0], order[1])
        assert scores.score[j] == pytest.approx(mean[order[0]])
        assert scores.runner_up_score[j] == pytest.approx(mean[order[1]])
        assert scores.share[j] == pytest.approx(
            np.exp(3 * mean[order[0]]) / np.sum(np.exp(3 * np.array(mean)))
        )
        leads = [np.argmax([tile @ name for name in names]) == order[0] for tile in own]
        assert scores.agreement[j] == pytest.approx(np.mean(leads)) and scores.tiles[j] == len(own)
    assert scores.best[3] == scores.runner_up[3] == -1 and np.isnan(scores.score[3])


def test_a_name_that_leads_by_a_few_tiles_alone_is_not_given():
    """One tile in three is very red, the others slightly green: the mean is red, and nobody is sure."""
    angles = np.array([0.0, 0.9, 0.9])  # from red; green lies at π / 2
    tiles = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    scores = score_names(tiles, np.zeros(3, int), 1, np.eye(2), 25.0)
    (named,) = choose_names(scores, [1], ("red", "green"), 0.02)
    assert named.best == "red" and named.margin > 0.02
    assert named.agreement == pytest.approx(1 / 3) and not named.is_sure and named.name == ""


def test_two_tiles_are_too_few_to_be_sure():
    for count, expected in ((2, ""), (3, "red")):
        scores = score_names(np.tile([[1.0, 0]], (count, 1)), np.zeros(count, int), 1, np.eye(2), 25.0)
        assert choose_names(scores, [count], ("red", "green"), 0.02)[0].name == expected


def test_names_stay_distinct():
    assert number_names(["a", "a", None, "a 1"], ["a", "a 1"]) == ["a 2", "a 3", "", "a 1"]


# ---------------------------------------------------------------------------------------- fseg codebook name


@pytest.fixture
def run(fitted, tmp_path, monkeypatch, capsys):
    """Run the command on the codebook; return its exit code, output and errors."""

    def run(prompts: str | bytes, *options: object, encoder: str = "keep"):
        monkeypatch.setattr("fseg_jax.encoders.image_text.load_image_text", lambda *_, **__: Planted())
        path = tmp_path / "prompts.csv"
        path.write_bytes(prompts if isinstance(prompts, bytes) else prompts.encode())
        arguments = [
            "codebook",
            "name",
            fitted / "c.safetensors",
            "--prompts",
            path,
            "-o",
            tmp_path / "n.csv",
        ]
        with pytest.raises(SystemExit) as end:
            cli.main([*map(str, [*arguments, *options]), *(["--encoder", encoder] if encoder else [])])
        told = capsys.readouterr()
        return end.value.code, told.out, told.err

    return run


def test_the_file_of_names_is_taken_as_it_is(run, tmp_path):
    code, out, _ = run('name;prompt\nred;\n"=green, it is";green\nblue;\n')
    assert code == 0 and "cluster 3: not sure, " in out and "cluster 5: no tiles" in out
    assert "3 of 5 clusters named, ahead by 0.0277 at least" in out
    clusters = load_names(tmp_path / "n.csv").apply(5)
    assert clusters.names == ("red", "=green, it is", "cluster 3", "blue", "cluster 5")
    before = clusters._replace(names=("a", "b", "mine", "d", "cluster 5"))
    kept = load_names(tmp_path / "n.csv").keep(before).apply(5)
    assert kept.names == ("red", "=green, it is", "mine", "blue", "cluster 5")
    with (tmp_path / "n.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[0]["runner_up"] and float(lines[0]["margin"]) > 0.9 and lines[0]["agreement"] == "1.0000"
    assert {line["model"] for line in lines} == {"planted"}
    assert lines[2]["best"] in ("red", "'=green, it is") and lines[4]["best"] == lines[4]["score"] == ""
    before = (tmp_path / "n.csv").read_bytes()
    code, _, err = run("name\nred\nblue\n")
    assert code == 2 and f"{tmp_path}/n.csv exists: choose another name, or --overwrite" in err
    assert (tmp_path / "n.csv").read_bytes() == before
    code, out, _ = run("name\nred\nblue\n", "--overwrite", "--margin", "1.5")
    assert code == 0 and "0 of 5 clusters named" in out and (tmp_path / "n.csv").read_bytes() != before


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ("", "no column name in its first line; prompts are CSV"),
        ("name,prompt\n", "no names, only a header: give at least two"),
        ("name\nred\nred\n", "the prompt 'red.' is also that of line 2"),
        ("name,prompt\nred,red\n", "only the name 'red': give at least two"),
        ("name,prompt\nred,x\nblue,X\n", "line 3: the prompt 'X' is also that of line 2"),
        ("name,prompt\nred: dark,red\n", "holds a colon"),
        ("name,prompt\ncluster 4,red\n", "is what clusters without a name are called"),
        (f"name\n{'a' * 191}\nb\n", "a name of 191 letters; 190 at most"),
        (b"name\n\xe9\n", "line 2 is not UTF-8"),
    ],
)
def test_prompts_that_cannot_be_are_one_line(run, tmp_path, prompts, says):
    code, _, err = run(prompts)
    assert code == 2 and says in err and err.count("\n") == 1 and not (tmp_path / "n.csv").exists()


def test_other_mistakes_are_one_line(run, fitted, tmp_path):
    def says(expected, *options, encoder="keep"):
        code, _, err = run("name\nred\nblue\n", *options, encoder=encoder)
        assert code == 2 and expected in err and err.count("\n") == 1, err
        assert not (tmp_path / "n.csv").exists()

    says("the encoder classical has no text tower, so words say nothing of its images", encoder="")
    says("the encoder uni has no text tower", encoder="uni")
    says("no features of tiles: give with --features the folder", "--features", tmp_path)
    says("contradict each other", "--features", tmp_path, "--results", tmp_path)
    says("holds no segmented slides", "--results", tmp_path)
    write_record(tmp_path / "out", fitted, "0" * 64)
    says("holds no slide that was segmented with this codebook", "--results", tmp_path / "out")
    says("no codebook of k = 3 in it", "--k", 3)
    says("nowhere: no such folder", "-o", tmp_path / "nowhere" / "n.csv")
    says("--margin", "--margin", 3)
    (fitted / "a.png").rename(fitted / "c.png")
    try:
        says("a.png")
        write_slide(fitted / "a.png", ["blue"])
        says("a.png: is another slide than the one that was looked at")
    finally:
        (fitted / "c.png").replace(fitted / "a.png")


def test_features_of_another_codebook_are_refused(fitted):
    def says(expected, book):
        with pytest.raises(InputError, match=expected):
            choose_from_features(fitted / "c.features", book, 8, 16)

    centers = Codebook.load(fitted / "c.safetensors").centers
    says("features of encoder classical, and the codebook's is uni", Codebook(centers, Provenance("uni")))
    says("features of mpp 1.0, and the codebook's is 2.0", Codebook(centers, Provenance(mpp=2.0)))
    says("its features are 20 wide, the codebook's centres 7", Codebook(centers[:, :7]))


def write_record(folder: Path, fitted: Path, codebook: str) -> None:
    """Write a record as of a slide that was segmented, its typical places in the middles of its tiles."""
    names = [f"cluster {j}" for j in range(1, 6)]
    with open_slide(fitted / "a.png", 1.0) as slide:
        facts = slide_facts(slide).to_json()
    at = {"cluster 1": [32, 40, 224], "cluster 2": [96, 288, 352], "cluster 3": [160, 170]}
    record = {
        "format": FORMAT,
        "encoder": {},
        "codebook": {"hash": codebook},
        "slide": facts,
        **{key: dict.fromkeys(names, 0) for key in ("areas_mm2", "colours", "border_share")},
        "typical": {name: [{"x": x, "y": 32.0, "share": 0.9} for x in xs] for name, xs in at.items()},
        "outlines": {},
    }
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(record))


def test_places_of_segmented_slides_are_looked_at(run, fitted, tmp_path):
    book = Codebook.load(fitted / "c.safetensors")
    write_record(tmp_path / "out", fitted, book.hash)
    tiles = choose_from_results(str(tmp_path / "out"), book, 1, 16)
    assert [(tile.cluster, tile.places[0].x, tile.field) for tile in tiles] == [
        (0, 32, 16),
        (1, 96, 16),
        (2, 160, 16),
    ]
    code, out, _ = run("name\nred\ngreen\nblue\n", "--results", tmp_path / "out")
    assert code == 0 and "first on 2 of 2 tiles" in out and "first on 3 of 3" in out
    names = load_names(tmp_path / "n.csv").apply(5).names
    assert names == ("red", "green", *(f"cluster {j}" for j in (3, 4, 5)))


def test_a_name_without_a_prompt_is_put_in_words():
    prompts = parse_prompts(b"name\nstroma\nglass\n", "p.csv")
    assert prompts.of_name["stroma"] == tuple(each.format("stroma") for each in TEMPLATES)
