"""Results in a bucket, features that are kept, and the report, each on a cohort of a few slides."""

import base64
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from cohorts import InProcessEngine, hash_files, make_job, run_in_process, write_codebook, write_slides
from stores import upload

from fseg_jax import cli
from fseg_jax.codebook import Codebook, Provenance, save_all
from fseg_jax.cohort import job, run
from fseg_jax.cohort.manifest import ManifestSlide, load_manifest
from fseg_jax.cohort.tables import write_tables
from fseg_jax.encoders.classical import classical
from fseg_jax.errors import InputError, OutputError
from fseg_jax.files import bucket as bucket_module
from fseg_jax.files.storage import open_storage
from fseg_jax.outputs import report


def fseg(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return exit_.value.code


# ------------------------------------------------------------------------------------------------ buckets


def fetched(bucket: str, prefix: str, to: Path) -> Path:
    """A place in a bucket, as a client that is not ours reads it."""
    import boto3

    client = boto3.client("s3")
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket.removeprefix("s3://"), Prefix=prefix
    )
    for item in (item for page in pages for item in page.get("Contents", [])):
        path = to / item["Key"].removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket.removeprefix("s3://"), item["Key"], str(path))
    return to


def test_slides_in_a_bucket_are_the_slides_that_they_are_on_a_disk(
    manifest, codebook, finished_cohort, bucket, tmp_path, monkeypatch
):
    monkeypatch.setenv("FSEG_CACHE", str(tmp_path / "cache"))
    scans, place = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(manifest.parent, scans)
    two = "".join((scans / "manifest.csv").read_text().splitlines(keepends=True)[:3])
    (scans / "manifest.csv").write_text(two)
    upload(scans, f"{bucket}/scans")
    summary, _ = run_in_process(f"{bucket}/scans/manifest.csv", place, codebook)
    assert summary.done == 2
    labels = {
        name: value for name, value in hash_files(place).items() if ".ome.zarr/" in name and "/c/" in name
    }
    assert labels and labels.items() <= hash_files(finished_cohort).items()
    engine = InProcessEngine()
    run_in_process(scans / "manifest.csv", place, codebook, engine)
    assert engine.slide_ids == []  # they are known by what is in them


def test_a_bucket_holds_what_a_folder_does(manifest, codebook, finished_cohort, bucket, tmp_path):
    place = f"{bucket}/some/cohort"
    open_storage(f"{bucket}/some").write("manifest.csv", absolute(manifest))
    summary, _ = run_in_process(f"{bucket}/some/manifest.csv", place, codebook)
    assert summary.done == 4
    assert hash_files(fetched(bucket, "some/cohort/", tmp_path / "a")) == hash_files(finished_cohort)
    engine = InProcessEngine()
    run_in_process(manifest, place, codebook, engine)
    assert engine.slide_ids == []
    with pytest.raises(InputError, match="resize was bilinear"):
        run_in_process(manifest, place, codebook, changes={"resize": "nearest"})
    # Fewer shards than before: none of the old labels may stay.
    changes = {"tissue": "all", "mpp": 2.0}
    assert run_in_process(manifest, place, codebook, engine, redo=True, changes=changes)[0].done == 4
    run_in_process(manifest, tmp_path / "fresh", codebook, changes=changes)
    assert hash_files(fetched(bucket, "some/cohort/", tmp_path / "b")) == hash_files(tmp_path / "fresh")


def absolute(manifest: Path) -> bytes:
    """A manifest that may lie anywhere."""
    head, *lines = manifest.read_text().splitlines()
    cells = [line.split(",") for line in lines]
    return "\n".join([head, *(",".join([c[0], str(manifest.parent / c[1]), *c[2:]]) for c in cells)]).encode()


def test_only_one_of_two_creates_a_key(bucket, tmp_path):
    for place in (open_storage(bucket), open_storage(str(tmp_path / "new"))):
        assert place.create("a.json", b"first") and not place.create("a.json", b"second")
        assert place.read("a.json") == b"first" and place.read("b.json") is None
        place.write("failures/x.json", b"1")
        place.write("failures/x.json", b"2")
        place.write("other/y.json", b"3")
        assert place.list_keys("failures") == ["failures/x.json"]
        assert place.read_all(["failures/x.json", "other/y.json", "z"]) == {
            "failures/x.json": b"2",
            "other/y.json": b"3",
        }
        place.delete("failures/x.json")
        place.delete("failures/x.json")
        assert place.list_keys("failures") == []


def test_a_record_is_the_last_to_come_and_the_first_to_go(bucket, tmp_path, monkeypatch):
    place = open_storage(f"{bucket}/record")
    folder = tmp_path / "a.ome.zarr" / "0" / "c"
    folder.mkdir(parents=True)
    (folder / "0").write_bytes(b"chunk")
    (tmp_path / "a.ome.zarr" / "zarr.json").write_bytes(b"{}")
    (tmp_path / "a.json").write_bytes(b"record")
    asked = []

    class Told:
        def __init__(self, store):
            self.store = store

        def __getattr__(self, name):
            return getattr(self.store, name)

        def write(self, key, data):
            asked.append((key, data is not None))
            return self.store.write(key, data)

    monkeypatch.setattr(place, "_store", Told(place._store))
    place.publish(tmp_path, ["a.json", "a.ome.zarr"])
    first = [key for key, there in asked if there]
    assert first == ["a.ome.zarr/0/c/0", "a.ome.zarr/zarr.json", "a.json"]
    asked.clear()
    (tmp_path / "a.json").write_bytes(b"another")
    place.publish(tmp_path, ["a.json", "a.ome.zarr"])
    shown = [(key, there) for key, there in asked if not key.startswith(".")]
    assert shown[0] == ("a.json", False) and [key for key, there in shown if there] == first
    decided = [key for key, there in asked if there].index(".a.json.whole")
    assert decided < asked.index(("a.json", False))
    assert sorted(place._list_range("", "")) == sorted(first)


def test_a_bucket_that_refuses_is_one_line(manifest, codebook, bucket, monkeypatch, capsys):
    for place, says in ((f"{bucket}-none/out", "NoSuchBucket"), ("s3:///out", "cannot be")):
        with pytest.raises(OutputError, match=says) as caught:
            run_in_process(manifest, place, codebook)
        assert "\n" not in str(caught.value) and place.rpartition("/")[0] in str(caught.value)
    impatient = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
    monkeypatch.setattr(
        bucket_module, "_CONTEXT", bucket_module.ts.Context({"s3_request_retries": impatient})
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match="connect") as caught:
        run_in_process(manifest, f"{bucket}/out", codebook)
    assert "\n" not in str(caught.value)


def test_a_bucket_that_refuses_half_way_stops_the_run(manifest, codebook, bucket, monkeypatch):
    import boto3

    def and_then_none(slides):
        yield slides[0]
        client = boto3.client("s3")
        keys = client.list_objects_v2(Bucket="cohorts")["Contents"]
        records = [
            key["Key"] for key in keys if key["Key"].startswith("out/S-") and key["Key"].endswith(".json")
        ]
        assert "out/S-00.json" in records
        client.delete_objects(Bucket="cohorts", Delete={"Objects": [{"Key": k["Key"]} for k in keys]})
        client.delete_bucket(Bucket="cohorts")
        yield from slides[1:]

    engine = InProcessEngine(and_then_none)
    with pytest.raises(OutputError):
        run_in_process(manifest, f"{bucket}/out", codebook, engine)
    assert engine.slide_ids == ["S-00", "S-01"]


# ------------------------------------------------------------------------------------------------ features


@pytest.fixture(scope="module")
def kept(manifest, codebook, tmp_path_factory) -> Path:
    """A place where features are kept; and the slides are gone."""
    place = tmp_path_factory.mktemp("kept") / "out"
    _, told = run_in_process(manifest, place, codebook, feature_options={"keep_features": True})
    # 2 × 2 tiles of 8 × 8 tokens of 20 channels a slide, two bytes each
    assert "features to keep: 41 kB at most, if all of the slides were tissue; zstd makes it less" in told
    return place


def test_keeping_features_changes_no_result(kept, finished_cohort):
    without = {name: h for name, h in hash_files(kept).items() if ".features.zarr/" not in name}
    assert without == hash_files(finished_cohort)


def test_features_are_bfloat16_and_the_encoders(kept, manifest):
    import ml_dtypes

    from fseg_jax.outputs.rows import open_rows
    from fseg_jax.pipeline.plan import Settings, lay_out
    from fseg_jax.pipeline.tokens import encode_tiles
    from fseg_jax.slides.reader import open_slide

    rows, small_arrays, made = open_rows(
        open_storage(str(kept)).make_spec("S-01.features.zarr"), "tokens", ("tiles",)
    )
    tokens = rows.read().result()
    assert tokens.dtype == ml_dtypes.bfloat16 and made["encoder"]["name"] == "classical"
    settings = Settings(tile=128, batch=2)
    with open_slide(manifest.parent / "s01.tif") as slide:
        plan = lay_out(slide, classical().card, settings, None)
        assert small_arrays["tiles"].tolist() == [list(tile) for tile in plan.tiles()]
        tokens_of = encode_tiles(slide, plan, classical(), settings)
        exact = np.concatenate([np.asarray(A)[: len(t)] for t, A in tokens_of(plan.tiles())])
    np.testing.assert_array_equal(tokens, exact.astype(ml_dtypes.bfloat16))
    metadata = json.loads((kept / "S-01.features.zarr" / "tokens" / "zarr.json").read_text())
    assert metadata["data_type"] == "bfloat16" and metadata["codecs"][-1]["name"] == "zstd"


@pytest.mark.parametrize(
    "changes",
    [{}, {"mode": "assign", "concepts": 5}, {"resize": "nearest"}, {"k": 3, "codebook": None}],
    ids=["other centres", "assign", "nearest", "fitted on the slide"],
)
def test_features_give_what_the_slides_give(kept, manifest, tmp_path, monkeypatch, changes):
    """All outputs, byte by byte, with another codebook; slides are only opened to be shown."""
    changes = dict(changes)
    book = changes.pop("codebook", write_codebook(tmp_path / "other.safetensors", k=6, seed=1))
    run_in_process(manifest, tmp_path / "full", book, changes=changes)
    monkeypatch.setattr(run, "lay_out", None)
    monkeypatch.setattr(run, "encode_tiles", None)
    for module in (run, job):
        monkeypatch.setattr(module, "load_encoder_once", None)
    summary, _ = run_in_process(
        manifest, tmp_path / "again", book, changes=changes, feature_options={"features": str(kept)}
    )
    assert summary.done == 4 and not summary.failed
    assert hash_files(tmp_path / "again") == hash_files(tmp_path / "full")


def test_features_from_the_command_line(kept, manifest, finished_cohort, codebook, tmp_path, capsys):
    """On a manifest of slides that are gone."""
    gone = tmp_path / "manifest.csv"
    shutil.copy(manifest, gone)
    arguments = (
        *("cohort", gone, "-o", tmp_path / "out", "--codebook", codebook, "--smoothing", 0),
        *("--features", kept),
    )
    assert fseg(*arguments, "--batch", 4) == 0
    # Typical places are known, and there is nothing to show of them.
    found, expected = hash_files(tmp_path / "out"), hash_files(finished_cohort)
    changed = {key for key in expected if found.get(key) != expected[key]}
    pictures = ("S-{}.png", "typical/S-{}.jpg")
    assert changed == {name.format(f"{i:02d}") for name in pictures for i in range(4)}
    capsys.readouterr()
    assert fseg(*arguments, "--tile", 256) == 2
    assert "--tile: the features have that already" in capsys.readouterr().err
    assert fseg(*arguments[:-1], tmp_path / "nowhere") == 2
    assert "no cohort is there" in capsys.readouterr().err
    book = Codebook.load(codebook)
    other = Provenance(encoder="classical", stain_normalization=True)
    save_all(tmp_path / "normalized.safetensors", {book.k: Codebook(book.centers, other)})
    assert fseg(*arguments, "--codebook", tmp_path / "normalized.safetensors") == 2
    assert "kept without stain normalization, and the codebook was fitted with it" in capsys.readouterr().err


def test_features_that_are_not_there_or_of_other_settings_fail_their_slide(
    kept, manifest, codebook, tmp_path
):
    place = shutil.copytree(kept, tmp_path / "kept")
    shutil.rmtree(place / "S-00.features.zarr")
    group = place / "S-01.features.zarr" / "zarr.json"
    group.write_text(group.read_text().replace('"features_hash": "', '"features_hash": "x'))
    (place / "S-02.features.zarr" / "tokens" / "c" / "0" / "0" / "0" / "0").write_bytes(b"damaged")
    job._read_kept_agreement.cache_clear()
    summary, _ = run_in_process(
        manifest, tmp_path / "out", codebook, feature_options={"features": str(place)}
    )
    assert summary.done == 1
    assert "no finished features" in summary.failed["S-00"]
    assert "kept with other settings" in summary.failed["S-01"]
    assert "damaged" in summary.failed["S-02"]


def test_features_that_are_missing_are_made_on_resuming(kept, manifest, codebook, tmp_path):
    place = shutil.copytree(kept, tmp_path / "out")
    shutil.rmtree(place / "S-03.features.zarr")
    engine = InProcessEngine()
    run_in_process(manifest, place, codebook, engine, feature_options={"keep_features": True})
    assert engine.slide_ids == ["S-03"] and hash_files(place) == hash_files(kept)


# ------------------------------------------------------------------------------------------------ the report


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_the_report_in_a_browser(manifest, codebook, finished_cohort, browser, tmp_path):
    """It opens from a file, asks for nothing, sorts, filters, and shows what the tables say."""
    place = shutil.copytree(finished_cohort, tmp_path / "out")
    failures = {"slide_id": "B<1>", "path": "b.svs", "reason": "b.svs: no <b>resolution</b>"}
    open_storage(str(place)).write("failures/B1.json", json.dumps(failures).encode())
    slides = [*load_manifest(manifest), ManifestSlide("B<1>", Path("b.svs"))]

    write_tables(open_storage(str(place)), make_job(place, codebook), classical().card, slides, is_whole=True)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems, asked = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{place / 'report.html'}")
    assert problems == [] and [url for url in asked if not url.startswith("data:")] == [page.url]
    assert page.locator("#failures td").all_text_contents() == ["B<1>", "b.svs: no <b>resolution</b>"]

    def column(at: int) -> list[str]:
        return page.locator(f"#slides tbody tr td:nth-child({at})").all_text_contents()

    assert column(2) == ["S-00", "S-01", "S-02", "S-03"] and column(3) == ["Leeds", "Oslo"] * 2
    image = page.locator("#slides img").first
    assert image.evaluate("e => e.complete && e.naturalWidth") == 2 * report.SIDE + 4
    records = [json.loads((place / f"S-{i:02d}.json").read_text()) for i in range(4)]
    areas = [record["areas_mm2"]["cluster 2"] for record in records]
    page.locator("#chosen").select_option("cluster 2")
    heading = page.get_by_role("button", name="cluster 2 mm²")
    at = 1 + page.locator("#slides th").all_text_contents().index("cluster 2 mm²")
    assert column(at) == [f"{area:.3f}" for area in sorted(areas, reverse=True)]
    assert page.locator(f"#slides th:nth-child({at})").get_attribute("aria-sort") == "descending"
    heading.click()
    assert column(at) == [f"{area:.3f}" for area in sorted(areas)]
    page.locator("#find").fill("oslo")
    assert sorted(column(2)) == ["S-01", "S-03"]
    page.locator("#find").fill("")
    shares = [record["areas_mm2"]["cluster 1"] / record["tissue_mm2"] for record in records]
    page.locator("#slides th button").first.click()
    left, top = page.evaluate("[left, top_]")
    page.locator("#map").hover(position={"x": left + 5, "y": top + 5})
    assert page.locator("#tip").text_content().startswith(f"S-00, cluster 1: {100 * shares[0]:.1f} %")
    dot = page.evaluate("dots[0].slice(0, 2)")
    page.locator("#spread").hover(position={"x": dot[0], "y": dot[1]})
    assert page.locator("#spread_tip").text_content().startswith("S-0")
    parts = page.locator("#slides tbody tr").first.locator(".parts span")
    assert sum(parts.evaluate_all("all => all.map(e => parseFloat(e.style.width))")) == pytest.approx(
        100, abs=0.5
    )
    page.get_by_role("button", name="Pictures").click()
    assert page.locator("#gallery figure").count() == 4 and not page.locator("#slides").is_visible()
    assert page.locator("#gallery a").first.get_attribute("href") == "S-00.png"
    for width in (1400, 1280, 800):
        page.set_viewport_size({"width": width, "height": 900})
        page.get_by_role("button", name="Table").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_a_large_cohorts_pictures_are_files_beside_the_page(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (80, 164, 3)).astype(np.uint8)
    picture = report._encode_jpeg(report.Image.fromarray(noise))
    inside = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
    assert report._place_pictures({"a": picture, "b": None, "c": b"no JPEG"}) == {
        "a": inside,
        "b": "",
        "c": "",
    }
    monkeypatch.setattr(report, "_MAX_BYTES", 2 * len(picture))
    slides = {f"S {i}#": picture for i in range(3)} | {"b": None}
    assert report._place_pictures(slides) == {f"S {i}#": f"thumbnails/S%20{i}%23.jpg" for i in range(3)} | {
        "b": ""
    }


# ------------------------------------------------------------------------------------------------ Ray


@pytest.mark.long
def test_a_ray_cluster_of_which_a_node_is_killed(data, codebook, tmp_path):
    """Twelve slides on two nodes, one of which dies half-way: all are done."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    from fseg_jax.cohort.engines import Ray
    from fseg_jax.cohort.run import run_cohort
    from fseg_jax.slides.reader import open_slide

    with open_slide(data / "slides" / "CMU-1-Small-Region.svs") as slide:
        image = slide.read(0, 0, slide.height, slide.width, slide.mpp)
        manifest = write_slides(tmp_path / "slides", image, 12, 384, slide.mpp)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    doomed = cluster.add_node(num_cpus=1)
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        if line.startswith("[4/"):
            while len(list((tmp_path / "out").glob(".S-*.partial"))) < 2:  # both nodes are at a slide
                time.sleep(0.001)
            cluster.remove_node(doomed, allow_graceful=False)
            told.append("a node is killed")

    try:
        with Ray(cluster.address, 1) as engine:
            assert ray.cluster_resources()["CPU"] == 2
            asked = make_job(tmp_path / "out", codebook)
            summary = run_cohort(load_manifest(manifest), asked, engine, tell=tell)
    finally:
        cluster.shutdown()
    print("\n".join(told))
    assert summary.done == 12 and not summary.failed and "a node is killed" in told
    run_in_process(manifest, tmp_path / "here", codebook)
    assert hash_files(tmp_path / "out") == hash_files(tmp_path / "here")


def test_ray_that_is_not_there_is_one_line(manifest, tmp_path, capsys):
    pytest.importorskip("ray", reason="ray is not installed")
    arguments = ("cohort", manifest, "-o", tmp_path / "out", "--engine", "ray")
    assert fseg(*arguments, "--ray-address", "127.0.0.1:9") == 2
    err = capsys.readouterr().err
    assert err.count("fseg: error:") == 1 and "no Ray cluster answers" in err
