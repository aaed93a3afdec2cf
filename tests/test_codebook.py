"""Codebooks: our file, the authors' joblib file, and pickles that must not run."""

import hashlib
import pickle
import subprocess

import joblib
import numpy as np
import pytest

from fseg_jax.codebook import FORMAT, Codebook, Provenance, import_joblib, load_all, save_all
from fseg_jax.errors import InputError
from fseg_jax.files.tensor_reader import read_header
from fseg_jax.files.tensor_writer import write_tensors

pytestmark = pytest.mark.smoke

CENTERS = {k: np.random.default_rng(k).random((k, 6), np.float32) for k in (2, 5)}


def test_round_trip(tmp_path):
    origin = Provenance(encoder="classical", layer="features", mpp=1.0, tiles=9, seed=3, source="here")
    books = {k: Codebook(c, origin) for k, c in CENTERS.items()}
    save_all(tmp_path / "b.safetensors", books)
    back = Codebook.load(tmp_path / "b.safetensors", k=5)
    assert back.provenance == origin and back.hash == books[5].hash
    np.testing.assert_array_equal(back.centers, CENTERS[5])
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]


def test_mixtures_are_kept_and_are_part_of_the_hash(tmp_path):
    mixtures = np.random.default_rng(9).random((3, 6), np.float32)
    books = {k: Codebook(c, mixtures=mixtures) for k, c in CENTERS.items()}
    plain = {k: Codebook(c) for k, c in CENTERS.items()}
    save_all(tmp_path / "with.safetensors", books)
    save_all(tmp_path / "without.safetensors", plain)
    for k, book in load_all(tmp_path / "with.safetensors").items():
        np.testing.assert_array_equal(book.mixtures, mixtures)
        np.testing.assert_array_equal(book.centers, CENTERS[k])
        assert book.hash == books[k].hash != plain[k].hash and book.k == k
    assert all(book.mixtures is None for book in load_all(tmp_path / "without.safetensors").values())
    # The hash of centres alone is what it was before there were mixtures.
    digest = hashlib.sha256(repr((5, 6)).encode() + CENTERS[5].tobytes()).hexdigest()
    assert plain[5].hash == digest
    assert Codebook(CENTERS[5], mixtures=mixtures + 1).hash != books[5].hash
    headers = [read_header(tmp_path / f"{name}.safetensors") for name in ("with", "without")]
    assert [header.metadata["version"] for header in headers] == ["2", "1"]
    assert [list(header.entries) for header in headers] == [["2", "5", "mixtures"], ["2", "5"]]


@pytest.mark.parametrize(
    ("mixtures", "message"),
    [
        (np.zeros((0, 6)), "mixtures have the shape"),
        (np.full((2, 6), np.inf), "the mixtures hold a NaN"),
        (np.ones((2, 5)), "the mixtures are 5 wide, the centres 6"),
        (np.full((2, 6), 1e60), "float32 does not hold mixtures"),
    ],
)
def test_bad_mixtures_are_named(mixtures, message):
    with pytest.raises(InputError, match=message):
        Codebook(CENTERS[2], mixtures=mixtures)
    assert Codebook(CENTERS[2], mixtures=np.full((1, 6), -1e-9)).mixtures.min() == 0


def test_codebooks_of_one_file_have_the_same_mixtures(tmp_path):
    for mixtures in (None, np.ones((2, 6))):
        books = {
            2: Codebook(CENTERS[2], mixtures=np.zeros((2, 6))),
            5: Codebook(CENTERS[5], mixtures=mixtures),
        }
        with pytest.raises(InputError, match="must have the same mixtures"):
            save_all(tmp_path / "b.safetensors", books)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mixtures", "version", "message"),
    [
        (np.ones((2, 6), np.int32), "2", "no floats"),
        (np.ones((2, 7), np.float32), "2", "the mixtures are 7 wide"),
        (np.ones((2, 6), np.float32), "4", "of a later version: update fseg-jax"),
    ],
)
def test_files_of_mixtures_that_cannot_be_are_one_line(tmp_path, mixtures, version, message):
    metadata = {"format": FORMAT, "version": version, "provenance": "{}"}
    write_tensors(tmp_path / "b.safetensors", {"2": CENTERS[2], "mixtures": mixtures}, metadata)
    with pytest.raises(InputError, match=message) as caught:
        load_all(tmp_path / "b.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", ["C", "F"])
def test_centres_of_either_memory_order_are_saved_as_they_are(tmp_path, order):
    book = Codebook(np.asarray(CENTERS[5], order=order))
    save_all(tmp_path / "b.safetensors", {5: book})
    back = Codebook.load(tmp_path / "b.safetensors")
    np.testing.assert_array_equal(back.centers, CENTERS[5])
    assert back.hash == book.hash


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_authors_format_is_read(tmp_path, dtype, order):
    content = {k: np.asarray(c, dtype, order=order) for k, c in CENTERS.items()}
    joblib.dump(content, tmp_path / "centres.joblib")
    books = import_joblib(tmp_path / "centres.joblib")
    assert set(books) == {2, 5}
    for k, book in books.items():
        np.testing.assert_array_equal(book.centers, CENTERS[k])


def test_the_published_codebook_is_read(data):
    path = data / "codebooks" / "resnet.joblib"
    books, theirs = load_all(path), joblib.load(path)
    assert sorted(books) == [16, 32, 64, 128, 256]
    for k, centers in theirs.items():
        np.testing.assert_array_equal(books[k].centers, np.maximum(centers, 0))


def test_negative_rounding_is_clamped():
    assert Codebook(np.array([[-1e-9, 1.0]], np.float32)).centers.min() == 0


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {4: bad}, lambda bad: [CENTERS[5], bad]])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, wrap):
    mark = tmp_path / "ran"
    for function, arguments in [
        (subprocess.call, (["touch", str(mark)],)),
        (exec, (f"open({str(mark)!r}, 'w')",)),
        (getattr, ({}, "clear")),
        (np.load, ("x",)),
    ]:
        (tmp_path / "bad.joblib").write_bytes(pickle.dumps(wrap(Hostile(function, *arguments))))
        with pytest.raises(InputError, match="nothing was run") as caught:
            load_all(tmp_path / "bad.joblib")
        assert "\n" not in str(caught.value)
        joblib.dump(wrap(Hostile(function, *arguments)), tmp_path / "bad.joblib")
        with pytest.raises(InputError, match="nothing was run"):
            load_all(tmp_path / "bad.joblib")
    assert not mark.exists()


def test_object_arrays_are_refused(tmp_path):
    joblib.dump({2: np.array([[1, "x"], [2, None]], object)}, tmp_path / "o.joblib")
    with pytest.raises(InputError):
        load_all(tmp_path / "o.joblib")


@pytest.mark.parametrize(
    "content", [{2: CENTERS[5]}, {"a": CENTERS[2]}, [1, 2], {}, {2: np.zeros((2, 2), int)}]
)
def test_other_contents_are_refused(tmp_path, content):
    joblib.dump(content, tmp_path / "x.joblib")
    with pytest.raises(InputError, match=r"x\.joblib: "):
        load_all(tmp_path / "x.joblib")


@pytest.mark.parametrize("name", ["x.joblib", "x.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"hello", None])
def test_damaged_files_are_named(tmp_path, name, damage):
    path = tmp_path / name
    if name.endswith("joblib"):
        joblib.dump(CENTERS, path)
    else:
        save_all(path, {k: Codebook(c) for k, c in CENTERS.items()})
    path.write_bytes(path.read_bytes()[:-20] if damage is None else damage)
    with pytest.raises(InputError, match=name) as caught:
        load_all(path)
    assert "\n" not in str(caught.value)


def test_k_must_be_in_the_file(tmp_path):
    save_all(tmp_path / "b.safetensors", {k: Codebook(c) for k, c in CENTERS.items()})
    with pytest.raises(InputError, match="it holds k = 2, 5"):
        Codebook.load(tmp_path / "b.safetensors", k=3)
    with pytest.raises(InputError, match="choose one with --k"):
        Codebook.load(tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="no such codebook"):
        Codebook.load(tmp_path / "none.safetensors")


def test_another_encoders_codebook_is_an_error():
    book = Codebook(CENTERS[2], Provenance(encoder="uni", weights_hash="aa"))
    book.check("uni", 6, "aa")
    with pytest.raises(InputError, match="'uni', not with 'resnet50'"):
        book.check("resnet50", 6)
    with pytest.raises(InputError, match="6 wide, the features of the encoder 'uni' 1024"):
        book.check("uni", 1024)
    with pytest.raises(InputError, match="other weights"):
        book.check("uni", 6, "bb")


@pytest.mark.parametrize("size", [1e60, 1e-60, 1e-42])
def test_centres_that_float32_does_not_hold_are_an_error(size):
    with pytest.raises(InputError, match="float32 does not hold centres of such a size"):
        Codebook(np.float64(CENTERS[5]) * size)
    assert Codebook(np.zeros((2, 3))).k == 2


@pytest.mark.parametrize("centers", [np.zeros((0, 3)), np.full((2, 2), np.nan)])
def test_bad_centres_are_named(centers):
    with pytest.raises(InputError, match="codebook"):
        Codebook(centers)
