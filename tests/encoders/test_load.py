"""Encoders by name: from files, from a hub of our own, from the cache; and everything that can be wrong."""

import errno
import logging
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants, file_download
from safetensors.numpy import load_file, save_file
from stand_in import StandIn, running

from fseg_jax import cli
from fseg_jax.encoders import encoder, listing
from fseg_jax.encoders.catalog import published as catalog
from fseg_jax.encoders.catalog.row import IMAGENET, Row, vit_row
from fseg_jax.encoders.load import load_encoder, load_network
from fseg_jax.encoders.resnet.network import ResNetConfig
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.encoders.weights import cache, hub
from fseg_jax.encoders.weights.cache import check_status
from fseg_jax.encoders.weights.checkpoint import hash_file, open_checkpoint
from fseg_jax.encoders.weights.convert import convert_file, convert_to_network
from fseg_jax.errors import InputError
from fseg_jax.files.downloads import cache_folder

VIT = ViTConfig(patch=8, dim=32, depth=2, heads=2, mlp_width=64, image_size=32, registers=1, layer_scale=True)
TINY = vit_row(
    "tiny",
    "A tiny ViT",
    VIT,
    "lab/tiny",
    "model.safetensors",
    licence="CC-BY-4.0",
    citation="Nobody, 2024",
    parameters=30_000,
    input_size=32,
    normalisation=IMAGENET,
)
GATED = replace(TINY, name="locked", repo="lab/locked", gated=True, page="https://example.org/locked")
CNN = Row(
    name="tiny-cnn",
    title="A tiny ResNet",
    config=ResNetConfig("basic", (1, 1, 1, 1), channels=(4, 8, 16, 32), stem_channels=4),
    repo="lab/tiny-cnn",
    files=("model.safetensors",),
    layer="layer3",
    stride=16,
    channels=16,
    licence="MIT",
    citation="Nobody, 2025",
    page="https://example.org/tiny-cnn",
    parameters=20_000,
    normalisation=IMAGENET,
)

Tensors = dict[str, np.ndarray]


def vit_tensors(config: ViTConfig, seed: int = 0, dtype: type = np.float32) -> Tensors:
    """A ViT as timm publishes it, with random values."""
    c, hidden = config.dim, config.mlp_width
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, c),
        "reg_token": (1, config.registers, c),
        "pos_embed": (1, config.positions[0] ** 2 + config.prefix, c),
        "patch_embed.proj.weight": (c, 3, config.patch, config.patch),
        "patch_embed.proj.bias": (c,),
        "norm.weight": (c,),
        "norm.bias": (c,),
    }
    for index in range(config.depth):
        block = {"norm1.weight": (c,), "norm1.bias": (c,), "norm2.weight": (c,), "norm2.bias": (c,)}
        block |= {"attn.qkv.weight": (3 * c, c), "attn.qkv.bias": (3 * c,)}
        block |= {"attn.proj.weight": (c, c), "attn.proj.bias": (c,), "ls1.gamma": (c,), "ls2.gamma": (c,)}
        block |= {"mlp.fc1.weight": (hidden, c), "mlp.fc1.bias": (hidden,)}
        block |= {"mlp.fc2.weight": (c, hidden), "mlp.fc2.bias": (c,)}
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    if not config.registers:
        del shapes["reg_token"]
    if not config.layer_scale:
        shapes = {name: shape for name, shape in shapes.items() if ".ls" not in name}
    return random(shapes, seed, dtype)


def resnet_tensors(config: ResNetConfig) -> Tensors:
    """A ResNet of one basic block a stage as torchvision publishes it, with random values."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (config.stem_channels, 3, 7, 7)}
    width = config.stem_channels
    norms = {"bn1": width}
    for stage, channels in enumerate(config.channels, 1):
        at = f"layer{stage}.0"
        shapes |= {
            f"{at}.conv1.weight": (channels, width, 3, 3),
            f"{at}.conv2.weight": (channels, channels, 3, 3),
        }
        norms |= {f"{at}.bn1": channels, f"{at}.bn2": channels}
        if stage > 1:
            shapes[f"{at}.downsample.0.weight"] = (channels, width, 1, 1)
            norms[f"{at}.downsample.1"] = channels
        width = channels
    parts = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"{norm}.{part}": (size,) for norm, size in norms.items() for part in parts}
    tensors = random(shapes)
    return {key: abs(value) + 0.5 if key.endswith("var") else value for key, value in tensors.items()}


def random(shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: type = np.float32) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape, np.float32) / np.sqrt(shape[-1] if len(shape) > 1 else 1)).astype(
            dtype
        )
        for name, shape in shapes.items()
    }


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in (TINY, GATED, CNN):
        monkeypatch.setitem(catalog.CATALOG, row.name, row)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without a token, a network or anything in the hub's cache."""
    home = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")


@pytest.fixture
def log() -> Iterator[None]:
    """Puts the root logger back as it was before the command line set it up."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "published.safetensors"
    save_file(vit_tensors(VIT), path)
    return path


@pytest.fixture
def lab(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A hub that holds both encoders, one of them behind a gate."""
    model = {"model.safetensors": published.read_bytes()}
    stand_in = StandIn(
        files={"lab/tiny": dict(model), "lab/locked": dict(model)},
        gated={"lab/locked"},
        members={"hf_member"},
        tokens={"hf_stranger"},
    )
    with running(stand_in):
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in


@pytest.fixture
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 32, 48, 3), np.uint8))


def kept() -> list[str]:
    """Everything in the cache, half-written files among it."""
    return sorted(path.name for path in (cache_folder() / "encoders").rglob("*") if path.is_file())


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this was not to be called")


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_the_classical_encoder_needs_nothing():
    assert load_encoder("classical").card.name == "classical"
    assert kept() == []


def test_a_published_checkpoint_gives_the_network_it_holds(published, images):
    tiny = load_encoder("tiny", weights=published)
    state = open_checkpoint(published)
    expected = convert_to_network(state, VIT, what="the test").grid(
        (images / 255 - jnp.array(IMAGENET.mean)[None, None, None])
        / jnp.array(IMAGENET.std)[None, None, None],
        "blocks.1",
    )
    features = tiny(images)
    assert isinstance(tiny, encoder.Encoder)
    assert features.shape == (2, 4, 6, 32) and features.dtype == jnp.float32
    np.testing.assert_allclose(features, jax.nn.relu(expected), rtol=1e-4, atol=1e-5)
    card = tiny.card
    assert (card.name, card.layer, card.channels, card.stride) == ("tiny", "blocks.1", 32, 8)
    assert (card.tile, card.mpp, card.licence, card.citation) == (32, 1.0, "CC-BY-4.0", "Nobody, 2024")
    assert card.weights_hash == hash_file(published)


def test_bfloat16_halves_the_kernels_and_keeps_the_hash(published, images):
    full = load_encoder("tiny", weights=published)
    half = load_encoder("tiny", weights=published, dtype="bfloat16")
    assert half.card == full.card
    expected, features = full(images), half(images)
    assert features.dtype == jnp.float32
    error = jnp.linalg.norm(features - expected) / jnp.linalg.norm(expected)
    assert 0 < error < 2e-2
    kernels = {array.dtype for array in half.weights if array.ndim == 2 and array.shape[0] == 64}
    assert kernels == {jnp.dtype(jnp.bfloat16)}


def test_a_cnn_is_fed_larger_tiles(tmp_path):
    path = tmp_path / "cnn.safetensors"
    save_file(resnet_tensors(CNN.config), path)
    cnn = load_encoder("tiny-cnn", weights=path)
    assert cnn.card.tile == 512
    features = cnn(jnp.zeros((1, 32, 64, 3), jnp.uint8))
    assert features.shape == (1, 2, 4, 16) and bool(jnp.isfinite(features).all())


def test_a_pytorch_file_gives_what_its_safetensors_gives(published, tmp_path, images):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save({name: torch.from_numpy(tensor) for name, tensor in load_file(published).items()}, path)
    features = load_encoder("tiny", weights=path)(images)
    assert bool((features == load_encoder("tiny", weights=published)(images)).all())


def test_a_checkpoint_is_converted_once(published, monkeypatch):
    load_encoder("tiny", weights=published)
    assert kept() == [f"{hash_file(published)[:16]}-float32.safetensors"]
    monkeypatch.setattr("fseg_jax.encoders.weights.cache.convert_file", refuse)
    load_encoder("tiny", weights=published)


def test_a_file_of_ours_is_read_as_it_is(published, tmp_path, images, monkeypatch):
    ours = tmp_path / "ours"
    convert_file(published, ours, VIT, name="tiny")
    monkeypatch.setattr("fseg_jax.encoders.weights.cache.convert_file", refuse)
    tiny = load_encoder("tiny", weights=str(ours))
    assert kept() == [] and tiny.card.weights_hash == hash_file(published)
    monkeypatch.undo()


def test_a_file_of_ours_for_another_encoder_is_refused(published, tmp_path):
    ours = tmp_path / "ours.safetensors"
    convert_file(published, ours, VIT, name="uni")
    assert "of uni, not of tiny" in one_line(lambda: load_encoder("tiny", weights=ours))


def test_a_truncated_file_of_ours_is_refused(published, tmp_path):
    ours = tmp_path / "ours.safetensors"
    convert_file(published, ours, VIT, name="tiny")
    ours.write_bytes(ours.read_bytes()[:-100])
    assert "damaged or cut short" in one_line(lambda: load_encoder("tiny", weights=ours))


def test_calls_compile_once_for_all_loads_of_an_architecture(published, tmp_path, images):
    other = tmp_path / "other.safetensors"
    save_file(vit_tensors(VIT, seed=1), other)
    first = load_encoder("tiny", weights=published)
    first(images)
    compiled = encoder._encode._cache_size()
    again, different = load_encoder("tiny", weights=published), load_encoder("tiny", weights=other)
    assert first.apply is again.apply
    assert bool((first(images) == again(images)).all()) and bool((first(images) != different(images)).any())
    assert encoder._encode._cache_size() == compiled


def test_a_network_is_loaded_with_what_its_file_says(published):
    network, metadata = load_network("tiny", weights=published)
    assert network.layers()[-1] == "norm" and metadata["source_sha256"] == hash_file(published)


def test_first_use_fetches_and_later_use_needs_no_network(lab, published, images, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        first = load_encoder("tiny")
        load_encoder("tiny")
        load_encoder("tiny", dtype="bfloat16")
    licence = [record.getMessage() for record in caplog.records if "licence" in record.getMessage()]
    assert licence == ["tiny: licence CC-BY-4.0, see https://huggingface.co/lab/tiny. Cite Nobody, 2024"]
    assert len(lab.fetched()) == 1
    assert kept() == ["published-bfloat16.safetensors", "published-float32.safetensors"]
    assert first.card.weights_hash == hash_file(published)

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert bool((load_encoder("tiny")(images) == first(images)).all())
    # What was downloaded by whatever program serves too.
    for path in (cache_folder() / "encoders").rglob("*.safetensors"):
        path.unlink()
    assert load_encoder("tiny").card == first.card


def test_a_user_s_file_does_not_pass_for_the_published_one(published):
    load_encoder("tiny", weights=published)
    one_line(lambda: load_encoder("tiny"))


def test_the_second_file_name_is_tried(lab, monkeypatch):
    monkeypatch.setitem(catalog.CATALOG, "tiny", replace(TINY, files=("first.safetensors", *TINY.files)))
    load_encoder("tiny")
    assert len(lab.fetched()) == 1


def test_a_damaged_cached_file_is_made_again(lab, images, caplog):
    expected = load_encoder("tiny")(images)
    path = cache_folder() / "encoders" / "tiny" / "published-float32.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:50], b"", whole[:-1] + bytes([whole[-1] ^ 1]), b"\xff" * len(whole)):
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert bool((load_encoder("tiny")(images) == expected).all())
        assert "made again" in caplog.text and path.read_bytes() == whole
    assert len(lab.fetched()) == 1


@pytest.mark.parametrize("name", ["../../../outside", "a" * 39, "A" * 64, "0" * 64 + "/x"])
@pytest.mark.parametrize("of", ["content", "commit"])
def test_what_the_hub_calls_a_file_names_none_unless_it_is_a_hash(lab, of, name):
    setattr(lab, of, name)
    assert f"names its {of} " in one_line(lambda: load_encoder("tiny"))
    assert lab.fetched() == [] and kept() == []


def test_a_damaged_download_is_fetched_again(lab, published, caplog):
    lab.damage = 1
    assert "delete it" in one_line(lambda: load_encoder("tiny"))
    assert kept() == []
    with caplog.at_level(logging.WARNING):
        assert load_encoder("tiny").card.weights_hash == hash_file(published)
    assert "is damaged" in caplog.text and len(lab.fetched()) == 2


def test_a_gate_says_where_to_ask_and_how_to_log_in(lab, monkeypatch):
    message = one_line(lambda: load_encoder("locked"))
    assert "https://example.org/locked" in message and "hf auth login" in message and "HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    assert "the token here has no access" in one_line(lambda: load_encoder("locked"))
    monkeypatch.setenv("HF_TOKEN", "hf_mistyped")
    assert "rejects the token" in one_line(lambda: load_encoder("locked"))
    assert kept() == []
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert load_encoder("locked").card.name == "locked"


def test_what_the_hub_lacks(lab, monkeypatch):
    lab.files["lab/tiny"] = {"README.md": b""}
    assert "has no model.safetensors" in one_line(lambda: load_encoder("tiny"))
    del lab.files["lab/tiny"]
    assert "knows no repository lab/tiny" in one_line(lambda: load_encoder("tiny"))
    lab.fails = 503
    assert "answered 503" in one_line(lambda: load_encoder("tiny"))
    assert kept() == []


@pytest.mark.parametrize("offline", [False, True])
def test_no_network_says_what_to_do(monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    message = one_line(lambda: load_encoder("tiny"))
    assert ("offline mode is enabled" if offline else "Connection refused") in message
    assert "hf download lab/tiny model.safetensors" in message and "--weights FILE" in message


def test_an_encoder_published_elsewhere(lab, monkeypatch):
    row = replace(TINY, name="elsewhere", url=f"{lab.url}/lab/tiny/resolve/main/")
    monkeypatch.setitem(catalog.CATALOG, "elsewhere", row)
    assert check_status(row).state == "reachable"
    load_encoder("elsewhere")
    load_encoder("elsewhere", dtype="bfloat16")
    assert len(lab.fetched()) == 1 and check_status(row).state == "cached"


def test_a_bad_file_from_elsewhere_is_not_kept(lab, monkeypatch):
    row = replace(TINY, name="elsewhere", url=f"{lab.url}/lab/tiny/resolve/main/")
    monkeypatch.setitem(catalog.CATALOG, "elsewhere", row)
    lab.files["lab/tiny"]["model.safetensors"] = b"a page that says: not found"
    assert "damaged or cut short" in one_line(lambda: load_encoder("elsewhere"))
    assert not list((cache_folder() / "checkpoints").rglob("*.safetensors"))
    del lab.files["lab/tiny"]["model.safetensors"]
    assert "cannot be fetched (HTTP 404)" in one_line(lambda: load_encoder("elsewhere"))
    assert check_status(row).state == "missing"


def test_a_pytorch_file_without_torch_is_refused_before_it_is_fetched(lab, monkeypatch):
    lab.files["lab/tiny"] = {"pytorch_model.bin": b"gigabytes"}
    monkeypatch.setitem(catalog.CATALOG, "tiny", replace(TINY, files=("pytorch_model.bin",)))
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    assert "fseg-jax[convert]" in one_line(lambda: load_encoder("tiny"))
    assert lab.fetched() == []


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_leaves_nothing_behind(lab, published, monkeypatch):
    monkeypatch.setattr("fseg_jax.files.atomic.os.fsync", full)
    assert "No space left on device" in one_line(lambda: load_encoder("tiny", weights=published))
    assert "No space left on device" in one_line(lambda: load_encoder("tiny"))
    assert kept() == []


def test_a_disk_without_room_is_found_out_before_the_download(lab, monkeypatch):
    usage = cache.shutil.disk_usage("/")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "FSEG_CACHE" in one_line(lambda: load_encoder("tiny"))
    assert lab.asked == [] and kept() == []


def test_a_hub_cache_that_fills_up_is_one_line(lab, monkeypatch):
    monkeypatch.setattr(file_download, "http_get", full)
    assert "HF_HOME" in one_line(lambda: load_encoder("tiny"))
    assert kept() == []


def test_a_transfer_that_breaks_off_is_one_line(lab, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Data processing error: connection reset\nby peer")

    monkeypatch.setattr(file_download, "http_get", broken)
    assert "connection reset by peer" in one_line(lambda: load_encoder("tiny"))
    assert kept() == []


def test_a_cache_that_cannot_be_written_is_one_line(lab, published, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FSEG_CACHE", str(tmp_path / "file"))
    assert "FSEG_CACHE" in one_line(lambda: load_encoder("tiny", weights=published))
    monkeypatch.setenv("FSEG_CACHE", str(tmp_path / "read-only"))
    monkeypatch.setattr(cache.os, "access", lambda *_: False)
    assert "FSEG_CACHE" in one_line(lambda: load_encoder("tiny"))
    assert lab.asked == []


class Malice:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["FSEG_TEST_MALICE"],)


def spoiled(kind: str, published: Path) -> Path:
    path = published.with_name(f"{kind}.safetensors")
    tensors, whole = load_file(published), published.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("<html>Sign in to see this page</html>\n" * 100)
    elif kind == "folder":
        path.mkdir()
    elif kind == "absent":
        pass
    elif kind == "pickle":
        path = path.with_suffix(".bin")
        path.write_bytes(pickle.dumps({"state_dict": Malice()}))
    else:
        if kind == "other":
            tensors = resnet_tensors(CNN.config)
        elif kind == "missing":
            del tensors["blocks.1.attn.qkv.bias"]
        elif kind == "extra":
            tensors["blocks.2.attn.qkv.bias"] = tensors["blocks.1.attn.qkv.bias"]
        elif kind == "shape":
            tensors["blocks.1.mlp.fc1.weight"] = np.zeros((65, 32), np.float32)
        save_file(tensors, path)
    return path


SPOILED = ("truncated", "empty", "text", "folder", "absent", "pickle", "other", "missing", "extra", "shape")


@pytest.mark.parametrize("kind", SPOILED)
def test_a_checkpoint_that_is_not_the_encoder_s_is_one_line(kind, published, tmp_path, monkeypatch):
    marker = tmp_path / "it ran"
    monkeypatch.setenv("FSEG_TEST_MALICE", str(marker))
    path = spoiled(kind, published)
    message = one_line(lambda: load_encoder("tiny", weights=path))
    assert str(path) in message
    named = {"missing": "blocks.1.attn.qkv.bias", "extra": "blocks.2.attn.qkv.bias", "shape": "(65, 32)"}
    assert named.get(kind, "") in message
    assert kept() == [] and not marker.exists()


@pytest.mark.parametrize("kind", ["truncated", "pickle", "other", "no network", "gated"])
def test_the_command_line_says_it_in_one_line_and_exits_with_2(
    kind, published, lab, tmp_path, monkeypatch, capsys, log
):
    from PIL import Image

    monkeypatch.setenv("FSEG_TEST_MALICE", str(tmp_path / "it ran"))
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(image)
    name, weights = "tiny", []
    if kind == "no network":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    elif kind == "gated":
        name = "locked"
    else:
        weights = ["--weights", str(spoiled(kind, published))]
    arguments = ["segment", str(image), "-o", str(tmp_path / "out"), "--mpp-override", "1", "--encoder", name]
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, *weights])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("fseg: error: "), lines
    assert kept() == [] and not (tmp_path / "it ran").exists()


def test_bad_names_are_one_line():
    assert "did you mean" in one_line(lambda: load_encoder("unii"))
    assert "float32, bfloat16" in one_line(lambda: load_encoder("tiny", dtype="float16"))
    assert "has no weights" in one_line(lambda: load_encoder("classical", weights="x"))


def test_writers_at_the_same_time_do_not_harm_each_other(published, images):
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_encoder("tiny", weights=published), range(4)))
    assert len({each.card for each in loaded}) == 1 and len(kept()) == 1
    assert len({np.asarray(each(images)).tobytes() for each in loaded}) == 1


def test_what_a_killed_process_left_is_removed_a_day_later(published):
    folder = cache_folder() / "encoders" / "tiny"
    folder.mkdir(parents=True)
    old, new = folder / ".published-float32.safetensors.abc", folder / ".published-float32.safetensors.def"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    load_encoder("tiny", weights=published)
    assert not old.exists() and new.exists()


def test_status_says_whether_weights_can_be_had(lab, monkeypatch):
    assert check_status(TINY).state == "reachable"
    assert check_status(GATED).state == "gated: access not granted"
    assert "https://example.org/locked" in check_status(GATED).detail
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert check_status(GATED).state == "gated: access granted"
    monkeypatch.setenv("HF_TOKEN", "hf_mistyped")
    assert "rejects the token" in check_status(GATED).detail
    monkeypatch.delenv("HF_TOKEN")
    assert check_status(replace(TINY, files=("none.bin",))).state == "missing"
    assert check_status(replace(TINY, repo="lab/none")).state == "missing"
    assert lab.fetched() == []
    hub.fetch_checkpoint(TINY)
    assert check_status(TINY).state == "cached" and "converted when" in check_status(TINY).detail
    load_encoder("tiny")
    assert check_status(TINY).state == "cached" and "published-float32" in check_status(TINY).detail
    assert [(file.name, file.size > 0) for file in cache.list_cached()] == [("tiny", True)]
    lab.fails = 500
    assert check_status(GATED).state == "offline"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert check_status(TINY).state == "cached" and check_status(GATED).state == "offline"


def test_the_catalog_is_printed_whole_and_row_by_row():
    table = listing.format_table(catalog.CATALOG.values()).splitlines()
    assert len(table) == len(catalog.CATALOG) + 1
    assert len({line.index("gated") for line in table if line.endswith(" gated")}) == 1
    sheet = listing.format_sheet(GATED, hub.Status("offline", "no network"))
    for fact in ("30,000 parameters", "CC-BY-4.0 (gated)", GATED.page, "Nobody, 2024", "offline: no network"):
        assert fact in sheet
    assert "not stated" in sheet and "blocks.1: 32 channels, 8 pixels a token" in sheet


def test_weights_pass_through_python_one_at_a_time(tmp_path, monkeypatch):
    config = replace(VIT, dim=256, depth=6, heads=4, mlp_width=1024)
    row = replace(TINY, name="medium", config=config, layer="blocks.5", channels=256)
    monkeypatch.setitem(catalog.CATALOG, "medium", row)
    path = tmp_path / "medium.safetensors"
    save_file(vit_tensors(config), path)
    for _ in range(2):  # converted; then from the cache
        tracemalloc.start()
        medium = load_encoder("medium", weights=path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # NumPy's memory is traced, JAX's is not: all of the tensors at once would be the whole file.
        assert peak < path.stat().st_size / 2
    assert sum(array.nbytes for array in medium.weights) > 0.99 * path.stat().st_size


# Prints the most memory that loading took beyond what the program had, in bytes.
MEASURE = """
import re, sys
from pathlib import Path
import jax, numpy as np
from fseg_jax.encoders.catalog import published as catalog
from fseg_jax.encoders.load import load_encoder
import fseg_jax.encoders.weights.convert
from test_load import WIDE
jax.block_until_ready(jax.numpy.ones(8) + 1)
catalog.CATALOG["wide"] = WIDE

def kilobytes(name):
    return int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

before = kilobytes("VmRSS")
encoder = load_encoder("wide", weights=sys.argv[1], dtype=sys.argv[2])
jax.block_until_ready(encoder.weights)
print((kilobytes("VmHWM") - before) * 1024)
"""

WIDE_VIT = replace(VIT, patch=16, dim=1024, depth=12, heads=16, mlp_width=4096, image_size=224)
WIDE = replace(TINY, name="wide", config=WIDE_VIT, layer="blocks.11", stride=16, channels=1024)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("source", ["float32", "bfloat16"])
def test_a_large_network_loads_in_the_memory_of_its_file(source, tmp_path):
    import ml_dtypes

    path = tmp_path / "wide.safetensors"
    save_file(
        vit_tensors(WIDE_VIT, dtype={"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[source]), path
    )
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent / 'shared'}"}
    taken = []
    for _ in range(2):  # converted; then from the cache
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), "bfloat16"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        taken.append(int(run.stdout))
    (ours,) = (cache_folder() / "encoders" / "wide").glob("*.safetensors")
    assert taken[0] <= 1.3 * path.stat().st_size, f"{taken[0] / path.stat().st_size:.2f} × the published file"
    assert taken[1] <= 1.3 * ours.stat().st_size, f"{taken[1] / ours.stat().st_size:.2f} × the converted file"
