"""Live seeding without a browser: seeds are saved, and label the slide as their file does."""

import asyncio
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from fseg_jax import cli
from fseg_jax.errors import InputError, OutputError
from fseg_jax.methods import sic
from fseg_jax.numerics.kmeans.seeded import average_classes, fit_members
from fseg_jax.outputs.labels import open_labels
from fseg_jax.pipeline.clicks import SeedSettings, seed_slide
from fseg_jax.slides.reader import Slide
from fseg_jax.viewer import clustering
from fseg_jax.viewer import seeding as module
from fseg_jax.viewer.annotation import Annotation, Seed, read_annotation
from fseg_jax.viewer.seeding import Seeding
from fseg_jax.viewer.session import SlideSession, list_slides

SLIDE = {"path": "tissue.png", "height": 384, "width": 512, "mpp": 1.0}
STROMA, CRYPT = np.array([[300.0, 60.0]]), np.array([[100.0, 150.0]])


def run_seeding(out, script, settings=None):
    """Run a coroutine function on a loaded ``Seeding``, in a loop, and return its result."""

    async def run():
        seeding = Seeding(out, "tissue", settings or SeedSettings(), lambda: None)
        await seeding.load()
        try:
            return await script(seeding)
        finally:
            seeding.close()

    return asyncio.run(run())


async def wait_for_result(seeding):
    """Wait until clustering has ended."""
    while seeding._task is not None and not seeding._task.done():
        await asyncio.sleep(0.005)


def test_clicks_are_clustered_saved_and_undone(out):
    path = out / "tissue.seeds.geojson"

    async def script(seeding):
        seeding.place(STROMA, 0)
        assert read_annotation(path).seeds == (Seed(300.0, 60.0, 0),)  # at once
        seeding.place(CRYPT, 1)
        await wait_for_result(seeding)
        first = seeding.result
        assert (
            first.annotation == seeding.annotation
            and first.score == 1
            and set(np.unique(first.mask)) == {0, 1, 2}
        )
        assert first.mask[60, 300] == 1 and first.mask[150, 100] == 2 and (first.mask[270:310] == 0).all()
        seeding.undo()
        assert read_annotation(path).seeds == seeding.annotation.seeds and len(seeding.annotation.seeds) == 1
        seeding.redo()
        await wait_for_result(seeding)
        assert (seeding.result.mask == first.mask).all()
        seeding.rename_class(1, "crypt")
        assert read_annotation(path).classes == ("negative", "crypt")
        assert seeding.erase(STROMA + 3, 10) == 1 and seeding.erase(STROMA, 10) == 0
        await wait_for_result(seeding)
        assert read_annotation(path).count_seeds() == [0, 1]

    run_seeding(out, script)


def test_the_page_labels_as_the_file_does(out):
    async def script(seeding):
        seeding.set_options(hard=True, smooth=True)
        seeding.place(np.concatenate([STROMA, STROMA + 40]), 0)
        seeding.place(CRYPT, 1)
        await wait_for_result(seeding)
        record = await seeding.export(anndata=False)
        return seeding.result, record

    result, record = run_seeding(out, script)
    assert record["score"] == result.score and record["parameters"]["hard"] and record["parameters"]["smooth"]
    assert list(record["patches"].values()) == np.bincount(result.labels, minlength=2).tolist()
    mask = open_labels(out / "tissue.sic.ome.zarr").levels[0].read().result()
    assert (mask == result.mask).all()
    again = seed_slide(
        out,
        out / "tissue.seeds.geojson",
        SeedSettings(("negative", "positive"), hard=True, smooth=True),
        overwrite=True,
    )
    assert again["areas_mm2"] == record["areas_mm2"]


def test_a_file_of_the_pages_is_used_by_fseg_seed_with_its_classes(out, tmp_path, capsys):
    async def script(seeding):
        seeding.add_class()
        seeding.add_class()
        for j, name in enumerate(("stroma", "Crypt", "glass", "none of them")):
            seeding.rename_class(j, name)
        seeding.place(STROMA, 0)
        seeding.place(CRYPT, 1)
        seeding.place(np.array([[400.0, 20.0]]), 2)
        return seeding.annotation

    annotation = run_seeding(out, script)
    sent = tmp_path / "from a colleague.geojson"  # downloaded, and sent on
    sent.write_bytes((out / "tissue.seeds.geojson").read_bytes())
    with pytest.raises(SystemExit) as ended:
        cli.main(["seed", str(out), str(sent)])
    assert ended.value.code == 0
    record = json.loads((out / "tissue.sic.json").read_text())
    assert record["parameters"]["classes"] == ["stroma", "Crypt", "glass", "none of them"]
    assert record["seeds"]["points"] == {"stroma": 1, "Crypt": 1, "glass": 1, "none of them": 0}
    (out / "tissue.seeds.geojson").unlink()

    async def begin(seeding):
        seeding.load_first_file(sent)
        return seeding.annotation

    assert run_seeding(out, begin) == annotation
    # With other classes on the command line, the error names the first seed that has none of them.
    with pytest.raises(SystemExit) as ended:
        cli.main(["seed", str(out), str(sent), "--classes", "stroma,crypt", "--overwrite"])
    assert ended.value.code == 2
    assert "of class 'glass'; there are stroma, crypt" in capsys.readouterr().err


def test_three_classes_and_strokes(out):
    async def script(seeding):
        seeding.add_class()
        seeding.place(STROMA, 0)
        await wait_for_result(seeding)
        assert seeding.result is None and "another class" in seeding.problem
        n = seeding.place_stroke(np.array([[60.0, 150.0], [200.0, 150.0]]), 1)
        assert 4 <= n <= 6  # patches every 32 pixels
        seeding.place_stroke(np.array([[400.0, 20.0], [400.0, 20.0]]), 2)
        await wait_for_result(seeding)
        assert seeding.result.soft.shape[1] == 3 and set(np.unique(seeding.result.mask)) == {0, 1, 2, 3}
        certain, least = seeding.select_certain(1, 4), seeding.select_uncertain(4)
        assert (seeding.result.labels[certain] == 1).all() and set(certain).isdisjoint(least)
        centers = seeding.patches.embedded.centers[least]
        away = np.abs(centers[:, None] - centers[None]).max(-1) + 1e9 * np.eye(len(least))
        assert away.min() >= 64  # none on another
        seeding.undo()
        seeding.undo()
        assert len(seeding.annotation.seeds) == 1  # a stroke is one step
        seeding.remove_class(2)
        assert seeding.annotation.classes == ("negative", "positive")

    run_seeding(out, script)


def test_clicks_compile_nothing(out):
    async def script(seeding):
        seeding.place(STROMA, 0)
        seeding.place(CRYPT, 1)
        await wait_for_result(seeding)
        compiled = fit_members._cache_size(), average_classes._cache_size()
        for i in range(6):
            seeding.place(STROMA + 12 * i, i % 2)
            await wait_for_result(seeding)
        assert (fit_members._cache_size(), average_classes._cache_size()) == compiled

    run_seeding(out, script)


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ((512, 5), "no seed there"),
        ((-1, 5), "no seed there"),
        ((100, 290), "no seed there"),
        ((np.nan, 5), "no"),
    ],
)
def test_seeds_where_no_patch_is_are_refused(out, point, says):
    async def script(seeding):
        assert seeding.place(np.array([point], float), 0) == 0
        assert says in seeding.problem and seeding.annotation == Annotation()
        assert not (out / "tissue.seeds.geojson").exists()

    run_seeding(out, script)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ('{"classes": ["a", "b"], "seeds": [{"x": 1, "y": 2, "class": "Tumor"}]}', "of class 'Tumor'"),
        ('{"seeds": [{"x": 512, "y": 2, "class": "positive"}]}', "outside the slide"),
        ('{"seeds": [{"x": 100, "y": 290, "class": "positive"}]}', "on no embedded patch"),
    ],
)
def test_a_bad_file_is_one_line_and_changes_nothing(out, tmp_path, text, says):
    (tmp_path / "bad.json").write_text(text)

    async def script(seeding):
        seeding.place(STROMA, 0)
        before = seeding.annotation
        seeding.load_file(tmp_path / "bad.json")
        assert says in seeding.problem and "\n" not in seeding.problem and seeding.annotation == before

    run_seeding(out, script)
    (out / "tissue.seeds.geojson").unlink()

    async def begin(seeding):
        with pytest.raises(InputError, match=says):
            seeding.load_first_file(tmp_path / "bad.json")
        assert not (out / "tissue.seeds.geojson").exists()

    run_seeding(out, begin)


def test_labels_that_count_from_another_corner_than_the_embeddings_are_not_shown_beside_the_slide(
    out, monkeypatch
):
    closed = []
    monkeypatch.setattr(Slide, "close", lambda slide: closed.append(slide.name))
    path = out / "tissue.ome.zarr" / "labels" / "fseg" / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["fseg"]["slide"] |= {"frame": "bounds", "frame_x": 800, "frame_y": 600}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"tissue\.ome\.zarr: .* from different corners; .*--frame canvas"):
        SlideSession(out, "tissue", None, SeedSettings())
    assert closed == ["tissue"]  # the file of a slide that is not shown is not left open


def test_the_server_does_not_start_on_damaged_seeds(out):
    (out / "tissue.seeds.geojson").write_text("{")
    with pytest.raises(InputError, match=r"tissue\.seeds\.geojson: not valid JSON"):
        SlideSession(out, "tissue", None, SeedSettings())
    (out / "tissue.seeds.geojson").unlink()
    session = SlideSession(out, "tissue", None, SeedSettings())  # and the lock was given back
    with pytest.raises(InputError, match="open in another fseg view"):
        SlideSession(out, "tissue", None, SeedSettings())
    session.close()


class SurpriseError(Exception):
    """An error that no code expects."""


@pytest.mark.parametrize(
    "failure",
    [
        OutputError("out: cannot be written (No space left on device)"),
        OSError(28, "No space left on device"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        SurpriseError("!"),
        MemoryError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_step_that_cannot_be_saved_is_not_taken_whatever_the_reason(out, monkeypatch, failure):
    """Later steps are saved again, and undo and redo never lead to the step that failed."""
    path = out / "tissue.seeds.geojson"

    async def script(seeding):
        seeding.place(STROMA, 0)
        seeding.place(CRYPT, 1)
        seeding.undo()
        before, undone = seeding.annotation, seeding._history.future

        def fail(*_):
            raise failure

        for step in (
            lambda: seeding.place(CRYPT + 40, 1),
            lambda: seeding.place_stroke(CRYPT, 1),
            lambda: seeding.erase(STROMA, 10),
            seeding.add_class,
            lambda: seeding.rename_class(0, "stroma"),
            seeding.undo,
            seeding.redo,
            seeding.clear,
        ):
            with monkeypatch.context() as broken:
                broken.setattr(module, "write_annotation", fail)
                assert not step()
            assert seeding.problem.startswith("not done, as it cannot be saved: ")
            assert "\n" not in seeding.problem
            assert (seeding.annotation, seeding._history.future) == (before, undone) and read_annotation(
                path
            ) == before
        seeding.place(CRYPT + 40, 1)
        await wait_for_result(seeding)
        assert (
            seeding.problem == ""
            and read_annotation(path) == seeding.annotation
            and len(seeding.annotation.seeds) == 2
        )

    run_seeding(out, script)


def test_a_class_that_another_tab_removed_is_refused_with_the_reason(out):
    async def script(seeding):
        seeding.add_class()
        seeding.remove_class(2)  # in another tab
        assert seeding.place(STROMA, 2) == 0 and "removed just now" in seeding.problem
        seeding.rename_class(2, "stroma")
        seeding.remove_class(2)
        assert "fewest" in seeding.problem or "removed just now" in seeding.problem
        assert seeding.place(STROMA, 1) == 1 and seeding.problem == ""
        assert read_annotation(out / "tissue.seeds.geojson") == seeding.annotation

    run_seeding(out, script)


def test_a_file_of_seeds_that_was_removed_is_written_again(out):
    path = out / "tissue.seeds.geojson"

    async def script(seeding):
        seeding.place(STROMA, 0)
        path.unlink()
        seeding.place(CRYPT, 1)
        assert read_annotation(path) == seeding.annotation
        path.unlink()
        assert (await seeding.export(anndata=False))["seeds"]["points"] == {"negative": 1, "positive": 1}
        assert read_annotation(path) == seeding.annotation

    run_seeding(out, script)


def test_seeding_goes_on_after_clustering_or_loading_failed(out, monkeypatch):
    async def script(seeding):
        def fail(*_, **__):
            raise SurpriseError("of JAX\nand more")

        seeding.place(STROMA, 0)
        seeding.place(CRYPT, 1)
        await wait_for_result(seeding)
        with monkeypatch.context() as broken:
            broken.setattr(sic, "fit", fail)
            seeding.place(CRYPT + 40, 1)
            await wait_for_result(seeding)
            assert seeding.problem.startswith("cannot be segmented: SurpriseError: of JAX and more")
            assert seeding.result is None and not seeding.busy
        seeding.place(CRYPT - 40, 1)
        await wait_for_result(seeding)
        assert seeding.problem == "" and seeding.result.annotation == seeding.annotation
        monkeypatch.setattr(clustering, "reduce_channels", fail)
        await seeding.load()
        assert seeding.problem.startswith("cannot be segmented: SurpriseError")

    run_seeding(out, script)


def test_a_failed_export_is_reported(out, monkeypatch):
    async def script(seeding):
        seeding.place(STROMA, 0)
        seeding.place(CRYPT, 1)

        def fail(*_, **__):
            raise SurpriseError("!")

        monkeypatch.setattr(module, "seed_slide", fail)
        assert await seeding.export(anndata=True) is None
        assert seeding.problem.startswith("not written: SurpriseError: !") and not seeding.exporting

    run_seeding(out, script)


def test_saved_classes_are_not_renamed_by_accident(out):
    async def script(seeding):
        seeding.place(STROMA, 0)

    run_seeding(out, script, SeedSettings(("stroma", "crypt")))
    assert run_seeding(out, get_classes) == ("stroma", "crypt")
    with pytest.raises(InputError, match="has seeds of stroma, crypt"):
        Seeding(out, "tissue", SeedSettings(("a", "b")), lambda: None)


async def get_classes(seeding):
    """Return the names of the classes."""
    return seeding.annotation.classes


def test_folders_without_slides(tmp_path, out):
    assert list_slides(out) == ["tissue"]
    with pytest.raises(InputError, match="no such folder"):
        list_slides(tmp_path / "none")
    with pytest.raises(InputError, match="holds no slide to look at"):
        list_slides(tmp_path)


def test_empty_and_foreign_files_of_the_folder_are_no_slides(tmp_path, out):
    for name in ("empty.json", "empty.embeddings.json", "a.sic.json"):
        (out / name).touch()
    for name in (
        "empty.ome.zarr",
        "a.sic.ome.zarr",
        "b.ome.zarr",
        "b.json",
        "c.embeddings.json",
        ".d.ome.zarr",
    ):
        (out / name).mkdir()
    assert list_slides(out) == ["tissue"]
    with pytest.raises(InputError, match=r"is a file; give the folder of outputs, such as .*out"):
        list_slides(out / "tissue.csv")


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "[]", "3", "{", "\xff", "[" * 100_000, '{"slide": 3}', '{"slide": {"path": "a"}}'),
        *(
            json.dumps({"encoder": {"name": "n"}, "slide": SLIDE | {"mpp": m}})
            for m in ("1", 0, float("nan"))
        ),
        json.dumps({"encoder": {"name": "n"}, "slide": SLIDE | {"height": 10**30}}),
        json.dumps({"encoder": [], "slide": SLIDE}),
        json.dumps({"encoder": {"name": "n"}, "slide": SLIDE | {"path": None}}),
    ],
)
def test_a_record_of_another_program_is_one_line(out, text):
    for path in out.glob("tissue.embeddings.*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (out / "tissue.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"tissue\.json: is no record of fseg segment"):
        SlideSession(out, "tissue", None, SeedSettings())


def test_killing_the_program_loses_no_seed(out):
    """A program that places seeds gets SIGKILL: the file is whole, with every reported seed."""
    program = f"""
import asyncio, numpy as np, sys
from pathlib import Path
from fseg_jax import cli
from fseg_jax.pipeline.clicks import SeedSettings
from fseg_jax.viewer.seeding import Seeding
async def main():
    seeding = Seeding(Path({str(out)!r}), "tissue", SeedSettings(), lambda: None)
    for i in range(100000):
        seeding.place(np.array([[20.0 + i % 400, 60.0]]), i % 2)
        print(len(seeding.annotation.seeds), flush=True)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        printed = 0
        until = None
        for line in process.stdout:
            printed = int(line)
            until = until or time.monotonic() + 0.4
            if printed >= 30 and time.monotonic() > until:
                process.kill()
                break
        for line in process.stdout:
            printed = int(line)
    features = json.loads((out / "tissue.seeds.geojson").read_text())["features"]
    assert printed <= len(features) <= printed + 1
    assert len(read_annotation(out / "tissue.seeds.geojson").seeds) == len(features)
