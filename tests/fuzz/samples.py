"""A small whole file, or folder, of everything that is read, as the program or its neighbours write it."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import tensorstore as ts
import tifffile
import yaml
from dicom_files import write_series
from fixtures import FOLDER
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from fseg_jax.cam import classifier, classifier_file, classifier_training
from fseg_jax.codebook import Codebook, Provenance, save_all
from fseg_jax.cohort.job import Job
from fseg_jax.cohort.manifest import load_manifest
from fseg_jax.cohort.run import run_cohort, run_slide
from fseg_jax.cohort.sample_folder import SampleSettings
from fseg_jax.cohort.sampling import sample_cohort
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.encoders.resnet.network import ResNet, ResNetConfig
from fseg_jax.encoders.trained import Gains, save_trained
from fseg_jax.pipeline.embed import PatchSettings, embed_slide
from fseg_jax.pipeline.plan import Settings
from fseg_jax.pretraining import checkpoint, simclr
from fseg_jax.slides.reader import open_slide

SIDE = 128
TRUNK = ResNetConfig("basic", (1, 1), (8, 8), stem_channels=8, patches=True)
TRAINED = simclr.TrainingSettings(steps=2, pairs=2)
LEARNER = classifier.ClassifierSettings(network="small", size=32, epochs=1, batch=2)
SAMPLED = SampleSettings(tiles=2, tile=64, mpp=1.0, tissue="all")
KEEPING = Settings(tile=64, mpp=1.0, k=2, tissue="all", features="bfloat16", batch=2)


def picture() -> np.ndarray:
    """Some tissue on glass, in 8-bit RGB."""
    rng = np.random.default_rng(0)
    image = np.full((SIDE, SIDE, 3), 240, np.uint8)
    image[16:112, 16:112] = rng.integers(60, 200, (96, 96, 3))
    return image


def job(folder: Path) -> Job:
    """What the sample cohort was made by; ``folder`` is its place."""
    book = Codebook(np.random.default_rng(0).gamma(0.5, size=(2, 20)).astype(np.float32))
    return Job(str(folder), "classical", KEEPING, codebook=book, keep_features=True)


class InProcess:
    """An engine that runs slides here and now."""

    def describe(self, job):
        return classical().card

    def run(self, job, slides, wait_for_others):
        return (run_slide(job, slide) for slide in slides)


def _file(name: str, write: Callable[[Path], object]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        folder.mkdir(parents=True)
        write(folder / name)
        return folder / name

    return made


def _folder(write: Callable[[Path], object]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        folder.mkdir(parents=True)
        write(folder)
        return folder

    return made


def _text(content: object) -> Callable[[Path], object]:
    return lambda path: path.write_text(content if isinstance(content, str) else json.dumps(content))


def _tiff(**how: object) -> Callable[[Path], object]:
    resolution = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}
    return lambda path: tifffile.imwrite(path, picture(), **{**resolution, **how})


def _ome_tiff(path: Path) -> None:
    metadata = {"axes": "YXS", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}
    tifffile.imwrite(path, picture(), ome=True, metadata=metadata, tile=(64, 64), photometric="rgb")


def _svs(path: Path) -> None:
    said = f"Aperio Image Library v11.2.1\r\n{SIDE}x{SIDE} [0,0 {SIDE}x{SIDE}] (64x64) |AppMag = 10|MPP = 1.0"
    tifffile.imwrite(path, picture(), tile=(64, 64), description=said, metadata=None, photometric="rgb")


def _zarr(folder: Path) -> None:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/0/"}}
    chunks = {"name": "regular", "configuration": {"chunk_shape": [3, 64, 64]}}
    array = ts.open(
        {**spec, "metadata": {"shape": [3, SIDE, SIDE], "data_type": "uint8", "chunk_grid": chunks}},
        create=True,
    ).result()
    array.write(np.moveaxis(picture(), 2, 0)).result()
    space = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    scale = [{"type": "scale", "scale": [1, 1.0, 1.0]}]
    image = {
        "axes": [{"name": "c", "type": "channel"}, *space],
        "datasets": [{"path": "0", "coordinateTransformations": scale}],
    }
    attributes = {"ome": {"version": "0.5", "multiscales": [image]}}
    _text({"zarr_format": 3, "node_type": "group", "attributes": attributes})(folder / "zarr.json")


def _ozx(path: Path) -> None:
    folder = path.with_suffix(".zarr")
    _zarr(folder)
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    shutil.rmtree(folder)


def _dicom(folder: Path) -> None:
    write_series(folder, [picture(), picture()[::2, ::2]], label=True)


def _image(how: str) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(picture()).save(path, how)


def _mask(how: str) -> Callable[[Path], object]:
    return lambda path: Image.fromarray((picture()[..., 0] < 220) * np.uint8(255)).save(path, how)


def _outline(kind: str) -> dict:
    ring = [[10, 10], [100, 10], [100, 100], [10, 100], [10, 10]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    if kind == "Point":
        geometry = {"type": "Point", "coordinates": [40, 50]}
    one = {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"classification": {"name": "tumour", "color": [1, 2, 3]}},
    }
    other = {**one, "properties": {"classification": {"name": "stroma"}}}
    return {"type": "FeatureCollection", "features": [one, other]}


def _manifest(path: Path) -> None:
    _tiff(tile=(64, 64))(path.parent / "a.tif")
    _text("slide_id,path,mpp,site,split\nA,a.tif,1.0,Oslo,train\nB,a.tif,,Leeds,test\n")(path)


def _codebook(path: Path) -> None:
    books = {
        k: Codebook(np.ones((k, 3)), Provenance(encoder="uni", mpp=1.0, tiles=2, seed=0), np.ones((1, 3)))
        for k in (2, 3)
    }
    save_all(path, books)


def _encoder(path: Path) -> None:
    network = ResNet(TRUNK, rngs=nnx.Rngs(0))
    card = EncoderCard("ours", "layer2", 8, 8, 64, 1.0, (0.7, 0.5, 0.7), (0.2, 0.2, 0.2), "", "", "")
    save_trained(path, network, card, Gains())


def _published(path: Path) -> None:
    save_file({"conv1.weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float16)}, path)


def _copy(fixture: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes((FOLDER / fixture).read_bytes())


def _classifier(path: Path) -> None:
    learner = classifier_training.make_trainer(LEARNER, 2)
    classifier_file.write_classifier(path, learner, learner.begin, ("a", "b"))


def _training(path: Path) -> None:
    classifier_file.write_state(path, classifier_training.make_trainer(LEARNER, 2).begin, "of this training")


def _pretraining(path: Path) -> None:
    history = checkpoint.History(np.zeros((2, 3), np.float32), np.zeros((1, 2), np.float32))
    begin = simclr.make_trainer(TRAINED, TRUNK).begin
    checkpoint.save_checkpoint(path, begin, history, {"settings": {"steps": 2}})


def _cohort(folder: Path) -> None:
    _tiff(tile=(64, 64))(folder / "a.tif")
    _text("slide_id,path,mpp\nA,a.tif,1.0\nB,none.tif,1.0\n")(folder / "slides.csv")
    slides = load_manifest(str(folder / "slides.csv"), slides_needed=False)
    run_cohort(slides, job(folder / "out"), InProcess())
    (folder / "a.tif").unlink()


def _sampled(folder: Path) -> None:
    _tiff(tile=(64, 64))(folder / "a.tif")
    _text("slide_id,path,mpp\nA,a.tif,1.0\n")(folder / "slides.csv")
    sample_cohort(load_manifest(str(folder / "slides.csv")), folder / "features", classical(), SAMPLED)
    (folder / "a.tif").unlink()


def _embedded(folder: Path) -> None:
    _tiff(tile=(64, 64))(folder / "a.tif")
    with open_slide(folder / "a.tif") as slide:
        embed_slide(slide, folder, classical(), PatchSettings(patch=32, mpp=1.0, tissue="all", batch=2))
    _text({"center": [10, 10], "zoom": 3})(folder / "a.view.json")
    _text(_outline("Point"))(folder / "a.seeds.geojson")


def _dataset(folder: Path) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir()
        for case in ("a", "b"):
            _image("PNG")(folder / name / f"{case}.png")
    Image.fromarray((picture()[..., 0] < 220).astype(np.uint8)).save(folder / "masks" / "a.png")
    Image.fromarray((picture()[..., 0] < 220).astype(np.uint8)).save(folder / "masks" / "b.png")
    categories = [{"name": "glass", "value": 0}, {"name": "tissue", "value": [1, 2]}]
    described = {"categories": categories, "ignore": [255], "mpp": 1.0, "case": "(.)", "test": "b"}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(described))


def _labelled(folder: Path) -> None:
    for name in ("a", "b", "c"):
        _image("PNG")(folder / f"{name}.png")
    _text("image,label,held_out\na.png,polyp,\nb.png,normal,yes\nc.png,,\n")(folder / "labels.csv")


def _masks(folder: Path) -> None:
    for name in ("masks", "truth"):
        (folder / name).mkdir()
        _mask("PNG")(folder / name / "a.png")


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "manifest": _file("slides.csv", _manifest),
    "tissue outline": _file("tissue.geojson", _text(_outline("Polygon"))),
    "tissue mask, PNG": _file("tissue.png", _mask("PNG")),
    "tissue mask, TIFF": _file("tissue.tif", _mask("TIFF")),
    "tissue mask, JPEG": _file("tissue.jpg", _mask("JPEG")),
    "seeds": _file("seeds.geojson", _text(_outline("Point"))),
    "slide, tiled TIFF": _file("a.tif", _tiff(tile=(64, 64))),
    "slide, striped TIFF": _file("a.tif", _tiff(rowsperstrip=16)),
    "slide, deflated TIFF": _file("a.tif", _tiff(tile=(64, 64), compression="deflate")),
    "slide, JPEG in TIFF": _file("a.tif", _tiff(tile=(64, 64), compression="jpeg")),
    "slide, OME-TIFF": _file("a.ome.tif", _ome_tiff),
    "slide, DICOM": _folder(_dicom),
    "slide, SVS": _file("a.svs", _svs),
    "slide, OME-Zarr": _folder(_zarr),
    "slide, zipped OME-Zarr": _file("a.ozx", _ozx),
    "image, PNG": _file("a.png", _image("PNG")),
    "image, JPEG": _file("a.jpg", _image("JPEG")),
    "codebook": _file("book.safetensors", _codebook),
    "codebook, joblib": _file("book.joblib", lambda path: joblib.dump({2: np.ones((2, 3))}, path)),
    "encoder": _file("ours.safetensors", _encoder),
    "published checkpoint": _file("model.safetensors", _published),
    "published checkpoint, torch's": _file("model.pth", _copy("torch_zip.pth")),
    "published checkpoint, old torch's": _file("model.pth", _copy("torch_before_1_6.pth")),
    "classifier": _file("classifier.safetensors", _classifier),
    "unfinished classifier": _file("state.safetensors", _training),
    "unfinished encoder": _file("ours.checkpoint.safetensors", _pretraining),
    "cohort": _folder(_cohort),
    "sampled features": _folder(_sampled),
    "embeddings": _folder(_embedded),
    "dataset": _folder(_dataset),
    "image labels": _folder(_labelled),
    "masks to score": _folder(_masks),
}
