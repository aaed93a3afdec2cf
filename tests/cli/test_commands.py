"""The command line as a user meets it: results, and one line for each mistake."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures

from fseg_jax import cli


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch):
    """However slow the machine is, errors are all that is told."""
    monkeypatch.setattr("fseg_jax.cli.progress.LOG_EVERY", float("inf"))


def fseg(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return exit_.value.code


def test_json_is_a_line_a_slide_and_nothing_else(slide, tmp_path, capsys):
    (tmp_path / "bad.tif").write_bytes(b"none")
    options = ("--k", 2, "--tile", 128, "--encoder", "classical", "--json")
    assert fseg("segment", slide, tmp_path / "bad.tif", "-o", tmp_path / "out", *options) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    failed, done = lines
    assert failed["slide"] == "bad" and failed["status"] == "failed" and "bad.tif" in failed["error"]
    record = json.loads((tmp_path / "out" / "small.json").read_text())
    assert done | {"slide": "small", "status": "done", "areas_mm2": record["areas_mm2"]} == done
    assert done["seconds"] == record["seconds"]
    assert {Path(path).name for path in done["outputs"]} == {p.name for p in (tmp_path / "out").iterdir()}


def test_segment(slide, tmp_path, capsys):
    assert fseg("segment", slide, "-o", tmp_path, "--k", 3, "--tile", 128) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "small.png") and err == ""
    record = json.loads((tmp_path / "small.json").read_text())
    assert record["codebook"]["k"] == 3 and record["slide"]["mpp"] == pytest.approx(1.0)


@pytest.mark.smoke
def test_demo_needs_no_slide(tmp_path, capsys):
    assert fseg("demo", "-o", tmp_path) == 0
    picture = Path(capsys.readouterr().out.strip())
    assert picture.parent == tmp_path and Image.open(picture).size[0] > 900
    assert {p.suffix for p in tmp_path.iterdir()} == {".zarr", ".geojson", ".png", ".csv", ".json"}
    assert json.loads((tmp_path / "ihc.json").read_text())["codebook"]["k"] == 2


def test_a_codebook_is_imported_shown_and_used(slide, tmp_path, capsys):
    import joblib

    joblib.dump({4: np.random.default_rng(0).random((4, 20), np.float32)}, tmp_path / "c.joblib")
    target = tmp_path / "c.safetensors"
    assert fseg("codebook", "import", tmp_path / "c.joblib", "-o", target, "--encoder", "classical") == 0
    assert fseg("codebook", "import", tmp_path / "c.joblib", "-o", target) == 2
    assert fseg("codebook", "show", target) == 0
    assert "20 channels" in capsys.readouterr().out
    out = tmp_path / "out"
    own = ("--codebook", target, "--mode", "assign", "--concepts", 5)  # its encoder is taken
    assert fseg("segment", slide, "-o", out, *own) == 0
    assert json.loads((out / "small.json").read_text())["codebook"]["encoder"] == "classical"


@pytest.mark.smoke
def test_a_slide_is_embedded_and_seeded(slide, tmp_path, capsys):
    def point(x, y, name):
        properties = {"classification": {"name": name}}
        return {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [x, y]},
            "properties": properties,
        }

    seeds = tmp_path / "seeds.geojson"
    seeds.write_text(json.dumps([point(60, 60, "gland"), point(200, 250, "stroma")]))
    out = tmp_path / "out"
    assert fseg("embed", slide, "-o", out, "--patch", 32, "--mpp", 1.0, "--no-tissue") == 0
    assert fseg("seed", out, seeds, "--classes", "stroma,gland") == 0
    assert capsys.readouterr().out.split() == [
        str(out / "small.embeddings.zarr"),
        str(out / "small.sic.png"),
    ]
    assert fseg("seed", out, seeds, "--classes", "stroma,tumour", "--overwrite") == 2
    assert "gland" in capsys.readouterr().err
    assert fseg("seed", out, seeds, "--json", "--overwrite") == 0
    line = json.loads(capsys.readouterr().out)
    assert line["slide"] == "small" and set(line["areas_mm2"]) == {"gland", "stroma"}
    assert str(out / "small.sic.png") in line["outputs"]
    missing = tmp_path / "none.svs"
    assert fseg("embed", missing, "-o", out, "--json", "--encoder", "classical") == 2
    line = json.loads(capsys.readouterr().out)
    assert line == {"slide": "none", "status": "failed", "error": f"{missing}: no such file"}
    seeds.write_text("{")
    assert fseg("seed", out, seeds, "--overwrite") == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture(scope="module")
def bad(tmp_path_factory, slide) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.svs").write_text("this is no slide\n" * 100)
    (folder / "cut.tif").write_bytes(slide.read_bytes()[:20_000])
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "plain.png")
    (folder / "out-file").write_text("")
    from fseg_jax.codebook import Codebook, Provenance, save_all

    save_all(folder / "narrow.safetensors", {3: Codebook(np.ones((3, 7)))})
    save_all(folder / "other.safetensors", {3: Codebook(np.ones((3, 20)), Provenance(encoder="uni"))})
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{bad}/none.svs"], "none.svs: no such file"),
        (["{bad}/text.svs"], "text.svs: "),
        (["{bad}/cut.tif"], "cut.tif: "),
        (["{bad}/plain.png"], "--mpp-override"),
        (["{slide}", "--encoder", "resnet500"], "resnet50"),
        (["{slide}", "--k", "100000"], "tokens of tissue"),
        (
            ["{slide}", "--codebook", "{bad}/narrow.safetensors"],
            "7 wide, the features of the encoder 'he-small' 276",
        ),
        (
            ["{slide}", "--codebook", "{bad}/other.safetensors", "--encoder", "he-small"],
            "'uni', not with 'he-small'",
        ),
        (["{slide}", "--codebook", "{bad}/other.safetensors", "--k", "4"], "it holds k = 3"),
        (["{slide}", "--codebook", "{bad}/none.safetensors"], "no such codebook"),
        (["{slide}", "--tissue", "{bad}/none.png"], "no such file"),
        (["{slide}", "--tissue", "{bad}/plain.png"], "marks no tissue"),
        (["{slide}", "--tissue", "x", "--no-tissue"], "contradict"),
        (["{slide}", "{slide}"], "several slides are called 'small'"),
        (["{slide}", "--tile", "100"], "multiples"),
        (["{slide}", "--halo", "0.9"], "from 0 to 0.25"),
        (["{slide}", "--mpp", "-1"], "mpp"),
        (["{slide}", "--mpp", "0"], "mpp"),
        (["{slide}", "--mpp", "1000", "--encoder", "classical"], "per pixel; choose a finer --mpp"),
        (["{slide}", "--mpp", "0.001"], "nothing to see"),
        (["{slide}", "--tile", "99999"], "8192 at most"),
        (["{slide}", "--seed", "-1"], "--seed"),
        (["{slide}", "--mpp-override", "nan"], "--mpp-override"),
        (["{slide}", "--mode", "free"], "--mode"),
        (["{slide}", "--min-region", "1e8"], "µm² of tissue"),
        (["{slide}", "--min-region", "-1"], "--min-region"),
        (["{slide}", "--min-region", "nan"], "--min-region"),
        (["{slide}", "--mode", "assign", "--concepts", "5000"], "5000 concepts"),
        (["{slide}", "--nonsense"], "--nonsense"),
        (["{slide}", "--n_clusters", "8"], "no option is called --n_clusters: it is --k here"),
        (["{bad}/slides.csv"], "a manifest is for fseg cohort: fseg cohort"),
        ([], "SLIDE"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(arguments, says, bad, slide, tmp_path, capsys):
    out = tmp_path / "out"
    code = fseg("segment", *(a.format(bad=bad, slide=slide) for a in arguments), "-o", out)
    stdout, stderr = capsys.readouterr()
    assert code == 2 and stdout == ""
    assert stderr.startswith("fseg: error: ") and stderr.count("\n") == 1 and says in stderr
    assert not out.exists()


def test_results_that_exist_are_kept(slide, tmp_path, capsys):
    (tmp_path / "small.png").write_text("mine")
    assert fseg("segment", slide, "-o", tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err and (tmp_path / "small.png").read_text() == "mine"


def test_an_output_that_cannot_be_written(slide, bad, capsys):
    assert fseg("segment", slide, "-o", bad / "out-file") == 2
    assert "is a file" in capsys.readouterr().err
    assert fseg("segment", slide, "-o", "/proc/fseg") == 2  # read-only whoever asks
    assert "cannot be written" in capsys.readouterr().err


def test_one_bad_slide_does_not_stop_the_others(slide, bad, tmp_path, capsys):
    Image.fromarray(np.full((300, 300, 3), 243, np.uint8)).save(bad / "glass.png")
    slides = [bad / "glass.png", bad / "cut.tif", bad / "text.svs", slide]
    more = ("--mpp-override", 1, "--k", 3, "--tile", 128)
    assert fseg("segment", *slides, "-o", tmp_path, *more) == 2
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "small.png")
    assert "no tissue found" in err and "cut.tif" in err and "text.svs" in err
    assert "cluster 1 of one is not cluster 1 of another" in err  # each has clusters of its own
    assert "3 of 4 slides failed" in err and err.count("\n") == 5
    assert not (tmp_path / "glass.json").exists()


def test_a_fault_with_one_slide_does_not_stop_the_others(slide, tmp_path, monkeypatch, capsys):
    from fseg_jax.pipeline import segment

    (tmp_path / "odd.tif").write_bytes(slide.read_bytes())
    real = segment.segment_slide

    def fails(opened, *arguments, **options):
        if opened.name == "odd":
            raise ZeroDivisionError("by zero")
        return real(opened, *arguments, **options)

    monkeypatch.setattr(segment, "segment_slide", fails)
    out = tmp_path / "out"
    more = ("--encoder", "classical", "--k", 2, "--tile", 128)
    assert fseg("segment", tmp_path / "odd.tif", slide, "-o", out, *more) == 2
    said, err = capsys.readouterr()
    assert said.strip() == str(out / "small.png")
    assert f"segmenting {tmp_path / 'odd.tif'}: ZeroDivisionError: by zero; this is a fault" in err
    assert "1 of 2 slides failed" in err and err.count("\n") == 3


@pytest.mark.parametrize(
    ("name", "delay"), [(signal.SIGINT, 1.0), (signal.SIGTERM, 3.0), (signal.SIGINT, 6.0)]
)
def test_a_signal_ends_the_program_and_leaves_nothing(tmp_path, name, delay):
    """Whenever it comes: while modules load, while the codebook is fitted, while tiles are encoded."""
    image = np.tile(pictures.immunohistochemistry(), (4, 4, 1))
    Image.fromarray(image).save(tmp_path / "wide.png")
    out = tmp_path / "out"
    arguments = ["segment", tmp_path / "wide.png", "-o", out, "--mpp-override", "0.5", "--mpp", "0.13"]
    program = [sys.executable, "-m", "fseg_jax", *map(str, arguments)]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(delay)
        process.send_signal(name)
        start = time.perf_counter()
        _, err = process.communicate(timeout=60)
    assert time.perf_counter() - start < 30
    if delay > 1:  # before that, the handlers may not stand yet
        assert process.returncode == 130 and err.strip().endswith("nothing half-written is left")
    assert process.returncode != 0 and not out.exists()


def test_help_is_quick():
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fseg_jax", "--help"], check=True, capture_output=True)
    quickest = time.perf_counter() - start
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, fseg_jax.cli; print('jax' in sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert loaded.strip() == "False" and quickest < 3


def test_ctrl_c_says_so(slide, tmp_path, monkeypatch, capsys):
    from fseg_jax.pipeline import labels

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(labels, "_label_row", interrupted)
    assert fseg("segment", slide, "-o", tmp_path, "--k", 3, "--tile", 128) == 130
    assert "nothing half-written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
