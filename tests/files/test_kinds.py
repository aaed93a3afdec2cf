"""Files of tensors that lie about themselves, files of another kind than was wanted, names nearly right."""

import json
import pickle
import struct
from dataclasses import asdict
from pathlib import Path

import joblib
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save, save_file

from fseg_jax.cam.classifier import ClassifierSettings
from fseg_jax.cam.classifier_file import load_classifier
from fseg_jax.cam.image_features import describe_images
from fseg_jax.cam.image_labels import LabelledFolder
from fseg_jax.codebook import FORMAT, Codebook, load_all, save_all
from fseg_jax.cohort.manifest import ManifestSlide, select_split
from fseg_jax.encoders.catalog.names import find_row
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.encoders.load import load_encoder
from fseg_jax.encoders.trained import find_shipped, load_trained
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import describe_kind, suggest_names
from fseg_jax.files.tensor_reader import MAX_HEADER_BYTES, BrokenFileError, open_tensors, read_header

CENTERS = np.random.default_rng(0).random((2, 6), np.float32)


def line(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tensors(header: object, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**changes: object) -> dict[str, object]:
    return {"2": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        tensors(one(), length=2**62),
        tensors(one(), length=MAX_HEADER_BYTES),
        tensors(b"["),
        tensors(b"[" * 100_000),
        tensors([]),
        tensors({"__metadata__": {"format": 3}}),
        tensors({"2": 5}),
        tensors(one(shape=[2, 10**12])),
        tensors(one(shape=[2, -1])),
        tensors(one(shape=[True, 2])),
        tensors(one(shape=[1.5, 2])),
        tensors(one(shape=[1] * 40 + [2])),
        tensors(one(data_offsets=[0, 2**40])),
        tensors(one(data_offsets=[8, 0])),
        tensors(one(data_offsets=[0])),
        tensors(one(dtype=None)),
    ],
)
def test_a_header_is_held_against_its_file_before_anything_is_allocated(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(BrokenFileError):
        read_header(path)
    for load in (load_all, load_trained, load_classifier):
        assert line(lambda load=load: load(path)).startswith(f"{path}: ")


def test_a_file_that_is_whole_is_read(tmp_path):
    save_file({"2": CENTERS}, tmp_path / "x.safetensors", {"said": "so"})
    with open_tensors(tmp_path / "x.safetensors") as file:
        assert file.header.metadata == {"said": "so"} and file.header.entries["2"].shape == (2, 6)
        np.testing.assert_array_equal(file.get("2"), CENTERS)
        with pytest.raises(KeyError):
            file.get("3")


@pytest.mark.parametrize(
    "provenance",
    [
        "[]",
        '{"mpp": NaN}',
        '{"mpp": "a"}',
        '{"mpp": 1e300}',
        '{"tiles": 1e400}',
        '{"encoder": 3}',
        "[" * 9999,
    ],
)
def test_a_codebook_whose_provenance_cannot_be_is_one_line(provenance, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"2": CENTERS}, {"format": FORMAT, "provenance": provenance}))
    assert "not a readable codebook" in line(lambda: load_all(path))


def test_a_codebook_of_nothing_or_of_whole_numbers_is_one_line(tmp_path):
    path, said = tmp_path / "x.safetensors", {"format": FORMAT, "provenance": "{}"}
    path.write_bytes(save({}, said))
    assert "holds no codebook" in line(lambda: load_all(path))
    path.write_bytes(save({"2": CENTERS.astype(int)}, said))
    assert "no floats" in line(lambda: load_all(path))


def test_centres_in_any_order_of_bytes_are_read(tmp_path):
    path = tmp_path / "x.joblib"
    for order in ("<f4", ">f4", ">f8"):
        joblib.dump({2: np.asfortranarray(CENTERS.astype(order))}, path)
        np.testing.assert_array_equal(load_all(path)[2].centers, CENTERS)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b"x.",  # 16 GiB of bytes, of which one is there
        b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.",  # an array of two thousand million numbers
        pickle.dumps({2: {1, 2}}),
        pickle.dumps({(1, 2): 3}),
        joblib.numpy_pickle.pickle.dumps({2: np.dtype("V9")}),
    ],
)
def test_a_pickle_allocates_nothing_that_it_only_states(content, tmp_path):
    path = tmp_path / "x.joblib"
    path.write_bytes(content)
    assert line(lambda: load_all(path)).startswith(f"{path}: ")


def test_an_array_larger_than_its_file_is_refused(tmp_path):
    path = tmp_path / "x.joblib"
    joblib.dump({2: np.zeros((2, 300), np.float32)}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<H", 300), struct.pack("<H", 60_000)))
    assert path.read_bytes() != content
    assert "the file is truncated" in line(lambda: load_all(path))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A file of each kind, by what it is called."""
    folder = tmp_path_factory.mktemp("kinds")
    save_all(folder / "book.safetensors", {2: Codebook(CENTERS)})
    Image.new("RGB", (8, 8)).save(folder / "slide.svs", "TIFF")
    Image.new("RGB", (8, 8)).save(folder / "image.tif")
    (folder / "text.csv").write_text("slide_id,path\n")
    (folder / "outline.geojson").write_text('{"type": "FeatureCollection"}')
    save_file({"a": CENTERS}, folder / "theirs.safetensors")
    save_file({"a": CENTERS}, folder / "x.checkpoint.safetensors", {"format": "fseg-jax-pretraining-1"})
    save_file(
        {"a": CENTERS}, folder / "state.safetensors", dict.fromkeys(("fingerprint", "epoch", "best"), "1")
    )
    return {
        "a codebook": folder / "book.safetensors",
        "a slide": folder / "slide.svs",
        "a TIFF image": folder / "image.tif",
        "a text file": folder / "text.csv",
        "a JSON file": folder / "outline.geojson",
        "a safetensors file of another program": folder / "theirs.safetensors",
        "the checkpoint of an fseg pretrain that has not ended": folder / "x.checkpoint.safetensors",
        "the state of an fseg cam train that has not ended": folder / "state.safetensors",
        "the encoder 'he-small' of fseg pretrain": find_shipped("he-small"),
    }


def test_a_file_in_place_of_another_is_named_for_what_it_is(files):
    for kind, path in files.items():
        assert describe_kind(path).startswith(kind)
        wanted = {"a classifier": load_classifier}
        if kind != "a codebook":
            wanted["a codebook"] = load_all
        if "encoder" not in kind:
            wanted["an encoder"] = lambda path: load_encoder(str(path))
        for name, load in wanted.items():
            said = line(lambda load=load, path=path: load(path))
            assert said.startswith(f"{path}: {kind}") and "damaged" not in said, name
            assert f"not {name}" in said or "not a converted encoder" in said


def test_weights_of_another_kind_are_named(files, tmp_path, monkeypatch):
    said = line(lambda: load_encoder("uni", weights=files["a codebook"]))
    assert said == f"{files['a codebook']}: a codebook, not a checkpoint of uni: give that"
    assert "a slide, not a checkpoint" in line(lambda: load_encoder("uni", weights=files["a slide"]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"channels": 7}, "7 channels"),
        ({"channels": "a"}, "'a' channels"),
        ({"layer": "layer9"}, "layer 'layer9'"),
        ({"stride": 0}, "a stride of 0"),
        ({"tile": 10**9}, "tiles of 1000000000 pixels"),
        ({"mpp": float("nan")}, "nan µm per pixel"),
        ({"std": [0.2, 0, 0.2]}, "the deviation [0.2, 0, 0.2]"),
        ({"mean": [0.2]}, "the mean [0.2]"),
        ({"name": 3}, "no text"),
        ({"mpp": "1"}, "damaged"),
        ({"surplus": 1}, "damaged"),
        ({"gains": '{"trunk": NaN}'}, "the gains (nan, 0.0)"),
        ({"gains": '{"trunk": 0}'}, "the gains (0, 0.0)"),
        ({"gains": "[" * 9999}, "damaged"),
    ],
)
def test_a_card_that_cannot_be_is_one_line(changes, says, tmp_path):
    with safe_open(find_shipped("he-small"), framework="numpy") as file:
        metadata = file.metadata()
    gains = changes.get("gains", metadata["gains"])
    card = json.loads(metadata["card"]) | {name: v for name, v in changes.items() if name != "gains"}
    path = tmp_path / "ours.safetensors"
    path.write_bytes(with_metadata(find_shipped("he-small"), card=json.dumps(card), gains=gains))
    said = line(lambda: load_trained(path))
    assert said.startswith(f"{path}: its card ") and says in said


@pytest.mark.parametrize(
    "architecture",
    [
        '{"family": "none"}',
        '{"family": "resnet"}',
        '{"family": "resnet", "block": "basic", "depths": [1000000, 1]}',
        '{"family": "resnet", "block": "basic", "depths": [1, 2], "channels": [0, 0]}',
        '{"family": "swin", "window": 5000}',
        '{"family": "vit", "patch": 0, "dim": 8, "depth": 1, "heads": 0, "mlp_width": 8}',
        "[" * 9999,
    ],
)
def test_a_network_that_cannot_be_is_one_line(architecture, tmp_path):
    path = tmp_path / "ours.safetensors"
    path.write_bytes(with_metadata(find_shipped("he-small"), architecture=architecture))
    assert line(lambda: load_trained(path)).startswith(f"{path}: ")


def with_metadata(path: Path, **changes: str) -> bytes:
    """A file of tensors that says other things of itself."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] |= changes
    return tensors(header, data[8 + length :])


def test_a_name_that_is_nearly_right_is_answered_with_the_nearest():
    assert suggest_names("he-smal", ["he-small", "uni"]) == "did you mean he-small? "
    assert suggest_names("prov", ["prov-gigapath", "uni"]) == "did you mean prov-gigapath? "
    assert suggest_names("zebra", ["he-small", "uni"]) == ""
    assert "did you mean he-small or he-small-fine?" in line(lambda: load_all("he-smal"))
    assert "did you mean he-small?" in line(lambda: find_row("he-smal"))
    assert "did you mean uni2-h" in line(lambda: find_row("uni-h2"))
    assert "did you mean small?" in line(ClassifierSettings(network="smal").check)
    pictures = LabelledFolder(Path(), (), np.zeros(0, int), ("a", "b"), np.zeros(0, bool))
    assert "did you mean lire-even" in line(lambda: describe_images(pictures, "lire-evn", None))
    slides = (ManifestSlide("A", Path("a.svs"), split="train"),)
    assert "did you mean train?" in line(lambda: select_split(slides, "trian", "slides.csv"))


def test_the_card_of_the_encoder_that_comes_with_the_program_passes():
    card = load_trained("he-small").card
    assert card.channels == 276 and EncoderCard.from_json(json.loads(json.dumps(asdict(card)))) == card
