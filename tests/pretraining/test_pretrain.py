"""A run of self-supervision: the same whenever it is run and however often it is interrupted."""

import json
import shutil
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from kill import die_before_step
from PIL import Image

from fseg_jax.cli import main
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.load import load_encoder
from fseg_jax.encoders.resnet.network import ResNet as Trunk
from fseg_jax.encoders.resnet.network import ResNetConfig
from fseg_jax.encoders.trained import assemble, calibrate_gains, load_parts
from fseg_jax.errors import InputError
from fseg_jax.files.partial_folders import recover_folder
from fseg_jax.pretraining import pretrain as pretraining
from fseg_jax.pretraining.fields import Field, Geometry
from fseg_jax.pretraining.pretrain import pretrain
from fseg_jax.pretraining.simclr import Trainer, TrainingSettings, make_trainer

TINY = ResNetConfig("basic", (1, 1, 1), (8, 8, 16), stem_channels=8, norms=True, patches=True)
GEOMETRY = Geometry(side=32, regions=2)


@pytest.fixture(autouse=True, scope="module")
def shared_trainers():
    """A training of the same settings is compiled once."""
    share = cache(make_trainer)

    def make(settings, config, *, trunk=None, cut):
        given = {"cut": cut} if trunk is None else {"cut": cut, "trunk": trunk}
        return (make_trainer if "trunk" in given else share)(settings, config, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "make_trainer", make)
        yield


def fields(n: int = 3) -> list[Field]:
    rng = np.random.default_rng(0)
    return [Field(rng.integers(0, 256, (80, 90, 3), dtype=np.uint8), 1.0, f"site {i % 2}") for i in range(n)]


def run(out: Path, steps: int = 6, **options):
    settings = TrainingSettings(
        steps=steps, pairs=4, **{k: options.pop(k) for k in ("learning_rate",) if k in options}
    )
    defaults = {"name": "ours", "settings": settings, "geometry": GEOMETRY, "config": TINY, "every": 2}
    return pretrain(fields(), out, **{**defaults, **options})


def tensors(path: Path) -> bytes:
    return path.read_bytes()


def test_twice_is_the_same_and_so_is_interrupted(tmp_path: Path):
    record = run(tmp_path / "a.safetensors", score=lambda encoder: float(encoder.card.channels))
    assert len(record["losses"]) == 6 and record["scores"] == [[2, 16.0], [4, 16.0], [6, 16.0]]
    assert json.loads((tmp_path / "a.json").read_text()) == record
    assert record["sites"] == {"site 0": 2, "site 1": 1}
    assert Image.open(tmp_path / "a.png").width > 500
    run(tmp_path / "b.safetensors")

    def stop(at):
        if at.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c.safetensors", report=stop)
    assert not (tmp_path / "c.safetensors").exists()
    resumed = run(tmp_path / "c.safetensors")
    assert resumed["resumed_at"] == 3 and resumed["losses"] == record["losses"]
    assert tensors(tmp_path / "a.safetensors") == tensors(tmp_path / "b.safetensors")
    assert tensors(tmp_path / "a.safetensors") == tensors(tmp_path / "c.safetensors")
    assert not list(tmp_path.glob("*checkpoint*"))


def test_on_a_device_views_are_cut_in_the_step(tmp_path: Path):
    """It learns what it would learn of the host's views, and an interrupted run the same."""
    host = run(tmp_path / "host.safetensors", steps=4)
    whole = run(tmp_path / "whole.safetensors", steps=4, cut_on_device=True)
    np.testing.assert_allclose(whole["losses"], host["losses"], rtol=0.05)
    assert whole["losses"] != host["losses"]  # views are not rounded

    def stop(at):
        if at.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "halted.safetensors", steps=4, cut_on_device=True, report=stop)
    assert run(tmp_path / "halted.safetensors", steps=4, cut_on_device=True)["resumed_at"] == 3
    assert tensors(tmp_path / "whole.safetensors") == tensors(tmp_path / "halted.safetensors")


def test_the_speed_is_that_of_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 10.0, 11.0, 12.0])  # the last two reports follow one upon the other
    monkeypatch.setattr(pretraining, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    speeds: list[float] = []
    run(tmp_path / "a.safetensors", steps=2, report=lambda at: speeds.append(at.images_per_second))
    assert speeds == [8 / 10, 16 / 11]


def test_what_it_writes_is_an_encoder(tmp_path: Path):
    out = tmp_path / "ours.safetensors"
    run(out, steps=2)
    encoder = load_encoder(str(out))
    assert (encoder.card.name, encoder.card.stride, encoder.card.channels) == ("ours", 16, 16)
    assert len(encoder.card.weights_hash) == 64
    features = encoder(jnp.zeros((1, 48, 64, 3), jnp.uint8))
    assert features.shape == (1, 3, 4, 16) and float(features.min()) >= 0
    narrow = load_encoder(str(out), dtype="bfloat16")(jnp.zeros((1, 48, 64, 3), jnp.uint8))
    np.testing.assert_allclose(narrow, features, atol=0.05 * float(features.max()) + 1e-3)
    with pytest.raises(InputError, match="leave --weights out"):
        load_encoder(str(out), weights=out)
    data = bytearray(out.read_bytes())
    data[-3] ^= 1
    out.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        load_encoder(str(out))


def test_an_encoder_is_trained_further(tmp_path: Path):
    first = tmp_path / "first.safetensors"
    anew = run(first, steps=2)
    record = run(tmp_path / "further.safetensors", start=load_parts(first), learning_rate=1e-9, steps=40)
    assert record["start"] == {"name": "ours", "weights_hash": load_encoder(str(first)).card.weights_hash}
    images = jnp.asarray(np.stack([field.pixels[:64, :64] for field in fields()]))
    before, after = (
        np.asarray(load_encoder(str(path))(images)) for path in (first, tmp_path / "further.safetensors")
    )
    # Without learning it stays what it was, but for its norms' statistics, which are of other views.
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.9
    assert anew["losses"][0] != record["losses"][0]  # of the same views


def test_stains_beside(tmp_path: Path):
    run(tmp_path / "plain.safetensors", steps=2)
    run(tmp_path / "both.safetensors", steps=2, stains=2.0)
    plain, both = (load_encoder(str(tmp_path / f"{name}.safetensors")) for name in ("plain", "both"))
    assert (plain.card.channels, both.card.channels) == (16, 36)
    assert plain.card.weights_hash != both.card.weights_hash
    images = jnp.asarray(np.stack([field.pixels[:64, :64] for field in fields()]))
    features = np.asarray(both(images))
    for part, alone in ((features[..., :16], plain(images)), (features[..., 16:], classical()(images))):
        ratio = part / np.maximum(np.asarray(alone), 1e-9)
        np.testing.assert_allclose(ratio[part > 1e-4], ratio.max(), rtol=1e-3)
    # On the very images that it is calibrated on, deviations are as 1 to 2.
    gains = calibrate_gains(Trunk(replace(TINY, norms=False), rngs=nnx.Rngs(0)), plain.card, images, 2.0)
    scaled = assemble(Trunk(replace(TINY, norms=False), rngs=nnx.Rngs(0)), plain.card, gains)(images)
    of_trunk, of_stains = (float(jnp.sqrt(part.var((0, 1, 2)).sum())) for part in jnp.split(scaled, [16], -1))
    np.testing.assert_allclose((of_trunk, of_stains), (1, 2), rtol=1e-3)


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint(tmp_path: Path):
    out = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=r"the loss is nan at step \d+: lower --learning-rate.*last good"):
        run(out, steps=40, learning_rate=1e30, every=1)
    assert not out.exists()
    checkpoint = tmp_path / "a.checkpoint.safetensors"
    kept = checkpoint.read_bytes()
    with pytest.raises(InputError, match="other settings: give the same, or --overwrite"):
        run(out, steps=5)
    assert checkpoint.read_bytes() == kept


def test_checkpoints_that_do_not_fit(tmp_path: Path):
    def stop(at):
        if at.step == 2:
            raise KeyboardInterrupt

    out, checkpoint = tmp_path / "a.safetensors", tmp_path / "a.checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(out, report=stop)
    wider = ResNetConfig("basic", (1, 1, 1), (8, 8, 24), stem_channels=8, norms=True, patches=True)
    with pytest.raises(InputError, match="other network"):
        run(out, config=wider)
    # The same run by its own word, and another shape.
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    content = load_file(checkpoint)
    with safe_open(checkpoint, framework="numpy") as file:
        metadata = file.metadata()
    name = next(n for n in content if content[n].ndim == 4)
    save_file(content | {name: content[name][:1].copy()}, checkpoint, metadata=metadata)
    with pytest.raises(InputError, match=r"should be \(.*--overwrite begins anew"):
        run(out)
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(InputError, match="damaged or cut short"):
        run(out)


@pytest.fixture
def trained_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a run was interrupted after its last step; steps and curves take no time."""
    trainer = make_trainer(TrainingSettings(steps=2, pairs=4), TINY)
    trunk = trainer.build_trunk(trainer.begin)

    def step(state, drawn):
        return state._replace(step=state.step + 1), (1.0, 0.5, 0.5)

    monkeypatch.setattr(
        pretraining, "make_trainer", lambda settings, config, **_: trainer._replace(step=step)
    )
    monkeypatch.setattr(Trainer, "build_trunk", lambda self, state: trunk)

    def stop(at):
        if at.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "draw_curves", lambda path, *_: path.write_bytes(b"curves"))
    folder = tmp_path / "begun"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(folder / "a.safetensors", steps=2, report=stop)
    assert [path.name for path in folder.iterdir()] == ["a.checkpoint.safetensors"]
    return folder


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_step_of_its_end_the_same_command_goes_on(
    trained_to_the_end: Path, tmp_path: Path, overwrite: bool
):
    """It is not refused, begins nothing anew, and loses no encoder that is there."""
    outputs = {"a.safetensors", "a.json", "a.png"}
    if overwrite:
        for name in outputs:
            (trained_to_the_end / name).write_bytes(b"old")
    whole = shutil.copytree(trained_to_the_end, tmp_path / "whole") / "a.safetensors"
    run(whole, steps=2, overwrite=overwrite)
    for step in count():
        out = shutil.copytree(trained_to_the_end, tmp_path / f"{step}") / "a.safetensors"

        def work(out=out):
            pretraining.check_output(out, overwrite)
            run(out, steps=2, overwrite=overwrite)

        died = die_before_step(work, step)
        recover_folder(out.parent)
        there = {path.name: path.read_bytes() for path in out.parent.iterdir()}
        if out.exists() and there["a.safetensors"] != b"old":
            assert there.keys() == outputs and there["a.safetensors"] == tensors(whole)
            assert json.loads(there["a.json"])["name"] == "ours" and there["a.png"] == b"curves"
            with pytest.raises(InputError, match="exists"):
                pretraining.check_output(out, overwrite=False)
        else:
            old = dict.fromkeys(outputs, b"old") if overwrite else {}
            assert {name: data for name, data in there.items() if "checkpoint" not in name} == old
            pretraining.check_output(out, overwrite)
            assert run(out, steps=2, overwrite=overwrite)["resumed_at"] == 2
            assert {path.name for path in out.parent.iterdir()} == outputs
            assert tensors(out) == tensors(whole)
        if not died:
            break
    assert step > 20


def test_overwriting_goes_on_from_its_own_checkpoint_and_from_no_other(
    trained_to_the_end: Path, caplog: pytest.LogCaptureFixture
):
    out, checkpoint = (trained_to_the_end / f"a.{name}" for name in ("safetensors", "checkpoint.safetensors"))
    kept = checkpoint.read_bytes()

    def stop(at):
        raise KeyboardInterrupt

    for damage in (kept[:500], kept):
        checkpoint.write_bytes(damage)
        steps = 3 if damage == kept else 2
        with pytest.raises(InputError, match="--overwrite"):
            run(out, steps=steps)
        with pytest.raises(KeyboardInterrupt):
            run(out, steps=steps, overwrite=True, report=stop)
        assert "does not fit this run, which begins anew" in caplog.messages[-1]
    assert run(out, steps=3, overwrite=True)["resumed_at"] == 1


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in ("pretrain", *arguments)])
    return int(end.value.code or 0)


def test_the_command_and_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images = tmp_path / "images"
    images.mkdir()
    out = tmp_path / "ours.safetensors"
    small = ("--steps", 1, "--pairs", 2, "--crop", 32, "--mpp-override", 1)

    def fails(match: str, *arguments: object) -> None:
        assert command(*arguments) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("fseg: error:") and match in said
        assert not out.exists()

    fails(str(images), images, "-o", out, *small)  # empty
    Image.fromarray(fields()[0].pixels[:10]).save(images / "thin.png")
    fails("too few for views of 32", images, "-o", out, *small)
    (images / "thin.png").unlink()
    Image.fromarray(fields()[0].pixels).save(images / "a.png")
    fails("must end in .safetensors", images, "-o", tmp_path / "ours.bin", *small)
    fails("no such folder", images, "-o", tmp_path / "no" / "ours.safetensors", *small)
    fails("finer one first", images, "-o", out, *small, "--mpp", 2, 1)
    fails("must divide", images, "-o", out, *small, "--chunk", 3)
    fails("--mpp-override", images, "-o", out, "--steps", 1)
    fails("resnet50: no such file", images, "-o", out, *small, "--start", "resnet50")
    checkpoint = tmp_path / "ours.checkpoint.safetensors"
    checkpoint.write_bytes(b"of a run")
    fails("finer one first", images, "-o", out, *small, "--mpp", 2, 1, "--overwrite")
    assert checkpoint.read_bytes() == b"of a run"
    checkpoint.unlink()
    assert command(images, "-o", out, *small) == 0
    assert "step 1/1 · loss" in capsys.readouterr().err
    assert load_encoder(str(out)).card.name == "ours"
    assert command(images, "-o", out, *small) == 2
    assert "exists" in capsys.readouterr().err
