"""A small slide with its embedding and segmentation, and a server of the page that shows them."""

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures

from fseg_jax import open_slide, segment_slide
from fseg_jax.encoders.classical import classical
from fseg_jax.pipeline.clicks import SeedSettings
from fseg_jax.pipeline.embed import PatchSettings, embed_slide
from fseg_jax.pipeline.plan import Settings


@pytest.fixture(scope="session")
def slide_folder(tmp_path_factory) -> Path:
    """Make ``tissue.png``, 512 × 384 pixels of 1 µm with a band of glass, and ``out/`` with its outputs."""
    folder = tmp_path_factory.mktemp("viewed")
    image = pictures.immunohistochemistry()[:384].copy()
    image[230:340] = 244
    Image.fromarray(image).save(folder / "tissue.png")
    with open_slide(folder / "tissue.png", 1.0) as slide:
        embed_slide(slide, folder / "out", classical(), PatchSettings(patch=64, mpp=1.0))
        segment_slide(slide, folder / "out", classical(), settings=Settings(k=3, tile=128, mpp=1.0))
    rng = np.random.default_rng(0)
    # A random projection will do: other tests run UMAP.
    from fseg_jax.outputs.embeddings import open_embeddings
    from fseg_jax.viewer import projection

    embedded = open_embeddings(folder / "out" / "tissue.embeddings.zarr")
    Y = rng.normal(size=(len(embedded.centers), 3)).astype(np.float32)
    projection.write_projection(folder / "out", "tissue", embedded, Y)
    return folder


@pytest.fixture
def out(slide_folder, tmp_path) -> Path:
    """Copy the outputs, for a test to change."""
    shutil.copytree(slide_folder / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def run_in_loop() -> Iterator[Callable]:
    """Return a function that runs functions in an asyncio loop beside the test."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(function: Callable, *arguments: object) -> object:
        async def call() -> object:
            result = function(*arguments)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(call(), loop).result(60)

    try:
        yield run
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.fixture
def start_server(out, run_in_loop):
    """Return a function that serves ``out``; the caller stops the server and closes the folder."""
    from fseg_jax.viewer.folder import Folder
    from fseg_jax.viewer.server import Server

    def begin() -> tuple[Folder, Server]:
        folder = Folder(out, None, SeedSettings())
        folder.open("tissue")
        server = Server(folder, "tissue", 0)
        server.start()
        return folder, server

    return lambda: run_in_loop(begin)


@pytest.fixture
def url(start_server, run_in_loop) -> Iterator[str]:
    """Serve ``out``; yield the address with its token."""
    folder, server = start_server()
    yield server.url
    run_in_loop(server.stop)
    run_in_loop(folder.close)
