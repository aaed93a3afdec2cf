"""The command ``python -m weights_convert``."""

import pytest
from click.testing import CliRunner
from fixtures import read_fixture, write_published

from fseg_jax.encoders.catalog import published as catalog
from fseg_jax.encoders.weights import weights_file
from weights_convert.__main__ import convert, main

RESNET = "resnet_bottleneck"


def test_the_command_converts_a_file(tmp_path, monkeypatch):
    fixture = read_fixture(RESNET)
    row = catalog.CATALOG["resnet50"]
    small_row = type(row)(**{**vars(row), "config": fixture.config})
    monkeypatch.setitem(catalog.CATALOG, "resnet50", small_row)
    out = tmp_path / "ours.safetensors"
    source = write_published(tmp_path, RESNET)
    result = CliRunner().invoke(convert, ["resnet50", "--checkpoint", str(source), "-o", str(out)])
    assert (result.exit_code, result.output) == (0, f"{out}\n")
    assert weights_file.load(out).metadata["name"] == "resnet50"


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    source = write_published(tmp_path, RESNET)
    with pytest.raises(SystemExit) as exit_:
        main(["uni", "--checkpoint", str(source), "-o", str(tmp_path / "o")])
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert err.count("\n") == 1
