"""``fseg evaluate`` and ``fseg evaluate sic`` as a user meets them."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import planted_bands
import pytest
from PIL import Image

from fseg_jax import cli
from fseg_jax.cli.evaluate import load_encoders
from fseg_jax.encoders import load
from fseg_jax.errors import InputError
from fseg_jax.evaluation import run


def fseg(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return exit_.value.code


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_bands.write_dataset(tmp_path_factory.mktemp("tiles") / "data", images=4)


OPTIONS = ["--k", 2, "--starts", 1, "--mode", "fixed", "--concepts", 3, "--threshold", 0.5, 0.9]
OPTIONS += ["--tile", 32, "--panels", 1]
SETTING = {"k": [2], "concepts": 3, "thresholds": [0.5, 0.9], "tile": 32, "panels": 1, "modes": ["fixed"]}


@pytest.mark.long
def test_a_folder_is_evaluated_without_naming_the_method(tiles, tmp_path, capsys):
    out = tmp_path / "out"
    assert fseg("evaluate", tiles, "-o", out, *OPTIONS) == 0
    assert capsys.readouterr().out.strip() == str(out / "results.md")
    setting = json.loads((out / "evaluation.json").read_text())["setting"]
    assert setting | SETTING == setting
    assert len(list((out / "panels").iterdir())) == 1


@pytest.mark.parametrize("before", [(), ("fseg",), ("--seed", 3), ("--same-split",)])
def test_options_reach_the_experiment_wherever_they_stand(tiles, tmp_path, capsys, monkeypatch, before):
    asked = []
    monkeypatch.setattr(
        run, "evaluate_fseg", lambda images, encoders, settings, **options: asked.append(asdict(settings))
    )
    assert fseg("evaluate", *before, tiles, "-o", tmp_path, *OPTIONS) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "results.md")
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in asked[0].items()}
    assert given | SETTING == given
    assert given["seed"] == (3 if "--seed" in before else 0)
    assert given["same_split"] == ("--same-split" in before)


def test_sic(tmp_path, capsys):
    folder = tmp_path / "slides" / "tissue-train-pos-v1"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    image = rng.integers(90, 120, (96, 128, 3)).astype(np.uint8)
    image[:, :64, 1] += 60
    mask = np.zeros((96, 128), np.uint8)
    mask[:, :64] = 255
    Image.fromarray(image).save(folder / "a.jpg", quality=95)
    Image.fromarray(mask).save(folder / "a_mask.jpg")
    out = tmp_path / "out"
    given = ["evaluate", "sic", tmp_path / "slides", "-o", out, "--patch", 32, "--no-tissue"]
    assert fseg(*given) == 2
    assert "--mpp-override" in capsys.readouterr().err and not out.exists()
    assert fseg(*given, "--clicks", 1, 2, "--runs", 2, "--mpp-override", 0.5) == 0
    assert capsys.readouterr().out.strip() == str(out / "results.md")
    record = json.loads((out / "evaluation.json").read_text())
    assert record["setting"]["clicks"] == [1, 2] and record["setting"]["runs"] == 2
    assert record["rows"][-1]["f1_best"] > 0.9 and record["rows"][0]["f1_best_sd"] == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("none",), "no such folder"),
        (("none", "--threshold", "high"), "'high': give a number"),
        (("none", "--panels", "-1"), "'-1': give a whole number, 0 or more"),
        (("sic", "none"), "no such folder: give one that holds NAME.jpg with NAME_mask.jpg"),
        (("sic",), "Missing argument 'DATASET'"),
        (("sic", "none", "--clicks", "0"), "'0': give a whole number, 1 or more"),
        (("sic", "none", "--k", "4"), "No such option '--k'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert fseg("evaluate", *arguments, "-o", "out") == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and said.startswith("fseg: error: ")
    assert list(tmp_path.iterdir()) == []


def test_help_names_both(capsys):
    for arguments in (("evaluate", "--help"), ("evaluate",)):
        fseg(*arguments)
        text = capsys.readouterr().out
        assert "fseg evaluate fseg --help" in text and "How well a few clicks find a tumour" in text


def test_weights_are_given_to_the_encoder_they_are_for(monkeypatch):
    asked = []
    monkeypatch.setattr(
        load,
        "load_encoder",
        lambda name, weights, dtype, last: asked.append((name, weights, dtype, last)) or name,
    )
    assert load_encoders(("a", "b", "a"), ("b=w=1.safetensors",), "float32") == ["a", "b"]
    assert asked == [("a", None, "float32", False), ("b", Path("w=1.safetensors"), "float32", False)]
    asked.clear()
    load_encoders(("a",), ("x=y.safetensors",), "bfloat16", last=True)
    assert asked == [("a", Path("x=y.safetensors"), "bfloat16", True)]
    with pytest.raises(InputError, match=r"--weights w\.pt: say whose, a or b: NAME=FILE"):
        load_encoders(("a", "b"), ("w.pt",), "float32")
    with pytest.raises(InputError, match=r"a has w\.pt already"):
        load_encoders(("a",), ("w.pt", "a=v.pt"), "float32")
