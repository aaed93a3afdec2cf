"""A slide's results as SpatialData: image, labels, regions and patches in one coordinate system of µm."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float

from fseg_jax.errors import InputError, OutputError, first_line
from fseg_jax.outputs.anndata_export import list_category_colours, make_anndata_keys
from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.embeddings import Embeddings
from fseg_jax.outputs.labels import LabelPyramid
from fseg_jax.outputs.slide_image import ReadImage
from fseg_jax.outputs.statistics import RegionTable

SYSTEM = "um"  # the coordinate system: µm from the corner of the slide


def import_spatialdata() -> Any:
    """Import the package spatialdata.

    Raises:
        InputError: It is not installed, or not with what else is.
    """
    try:
        import spatialdata
    except ImportError as error:
        raise InputError(
            f"SpatialData needs the package spatialdata ({first_line(error)}): "
            "pip install 'fseg-jax[spatialdata]'"
        ) from None
    return spatialdata


def write_spatialdata(
    path: Path,
    pyramid: LabelPyramid,
    regions: RegionTable,
    image: ReadImage | None,
    embedded: Embeddings | None,
    *,
    slide_mpp: float,
    origin: tuple[int, int],
) -> None:
    """Write a slide's results as SpatialData.

    Elements: ``images["slide"]``, ``labels["clusters"]``, ``shapes["regions"]`` and, where the slide is
    embedded, ``shapes["patches"]``; ``tables["regions_table"]`` and ``tables["patches_table"]`` annotate the
    shapes. All lie in the coordinate system ``um``. Shapes are stored in pixels of the file, as LazySlide
    takes those of any SpatialData.

    Args:
        path: The folder, ``….zarr``, which must not be there.
        pyramid: The slide's labels.
        regions: Their regions.
        image: The slide; None: there is no picture of it.
        embedded: Its patches; None: there are none.
        slide_mpp: µm per pixel of the slide.
        origin: Where the slide's coordinates count from, (y, x) on the file's canvas, in its pixels.

    Raises:
        InputError: A package is missing.
        OutputError: The folder cannot be written.
    """
    spatialdata = import_spatialdata()
    import dask.array
    from spatialdata.models import Image2DModel, Labels2DModel
    from spatialdata.transformations import Scale

    def place(mpp: float) -> dict[str, Any]:
        return {SYSTEM: Scale([mpp, mpp], axes=("y", "x"))}

    elements: dict[str, Any] = {}
    if image is not None:
        elements["slide"] = Image2DModel.parse(
            np.ascontiguousarray(image.image.transpose(2, 0, 1)),
            dims=("c", "y", "x"),
            c_coords=["r", "g", "b"],
            transformations=place(image.mpp),
        )
    finest = pyramid.levels[0]
    labels = dask.array.from_array(  # type: ignore[no-untyped-call]
        _Readable(finest), chunks=(2048, 2048), name=False
    )
    elements["clusters"] = Labels2DModel.parse(
        labels,
        dims=("y", "x"),
        transformations=place(pyramid.mpp[0]),
        scale_factors=[2] * (len(pyramid.levels) - 1) or None,
    )
    y, x = origin
    frame = np.array([[slide_mpp, 0, -x * slide_mpp], [0, slide_mpp, -y * slide_mpp], [0, 0, 1]])
    elements |= _make_shapes("regions", regions.polygons, frame)
    elements["regions_table"] = _tabulate_regions(pyramid, regions)
    if embedded is not None:
        elements |= _make_patches(embedded, frame)
    content = spatialdata.SpatialData.init_from_elements(elements)
    content.attrs["fseg"] = json.dumps(pyramid.provenance, ensure_ascii=False)
    try:
        content.write(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or first_line(error)})") from None


class _Readable:
    """A tensorstore as dask reads it."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.shape = tuple(store.shape)
        self.dtype = store.dtype.numpy_dtype
        self.ndim = len(self.shape)

    def __getitem__(self, at: Any) -> np.ndarray:
        return np.asarray(self._store[at].read().result())


def _make_shapes(name: str, polygons: np.ndarray, frame: Float[np.ndarray, "3 3"]) -> dict[str, Any]:
    """Make shapes of polygons in µm; ``frame`` takes the file's pixels to µm."""
    import geopandas
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Affine

    pixels = shapely.transform(polygons, lambda xy: (xy - frame[:2, 2]) / np.diag(frame)[:2])
    table = geopandas.GeoDataFrame(geometry=list(pixels))
    place = {SYSTEM: Affine(frame, input_axes=("x", "y"), output_axes=("x", "y"))}
    return {name: ShapesModel.parse(table, transformations=place)} if len(polygons) else {}


def _tabulate_regions(pyramid: LabelPyramid, regions: RegionTable) -> Any:
    """Tabulate the regions as AnnData: numbers in ``X``, each one's cluster in ``obs``."""
    import anndata
    import pandas as pd
    from spatialdata.models import TableModel

    n = len(regions.clusters)
    clusters = np.array(pyramid.names, object)[regions.clusters - 1].astype(str)
    colours = dict(zip(pyramid.names, map(format_hex, pyramid.colours), strict=True))
    keys = list(regions.columns)
    obs = pd.DataFrame(
        {
            "cluster": pd.Categorical(clusters),
            "element": pd.Categorical(["regions"] * n),
            "region": np.arange(n),
        },
        index=[f"{i}" for i in range(n)],
    )
    table = anndata.AnnData(
        X=np.stack([regions.columns[key] for key in keys], 1).astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=make_anndata_keys(keys)),
        obsm={"spatial": np.stack([regions.columns[key] for key in ("x_um", "y_um")], 1)},
        uns={"cluster_colors": list_category_colours(clusters, colours)},
    )
    if not n:
        return TableModel.parse(table)
    return TableModel.parse(table, region="regions", region_key="element", instance_key="region")


def _make_patches(embedded: Embeddings, frame: Float[np.ndarray, "3 3"]) -> dict[str, Any]:
    """Make the squares of a slide's patches, and the table of their embeddings."""
    import anndata
    import pandas as pd
    from spatialdata.models import TableModel

    mpp = embedded.provenance["slide"]["mpp"]
    side = embedded.provenance["parameters"]["side_level0"] * mpp
    y, x = (embedded.centers * mpp).T
    n = len(embedded.centers)
    obs = pd.DataFrame(
        {
            "row": embedded.grid[:, 0],
            "column": embedded.grid[:, 1],
            "element": pd.Categorical(["patches"] * n),
            "patch": np.arange(n),
        },
        index=[f"{i}" for i in range(n)],
    )
    table = anndata.AnnData(
        X=embedded.read().astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=[f"channel_{i}" for i in range(embedded.embeddings.shape[1])]),
        obsm={"spatial": np.stack([x, y], 1)},
    )
    squares = shapely.box(x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    parsed = TableModel.parse(table, region="patches", region_key="element", instance_key="patch")
    return {**_make_shapes("patches", squares, frame), "patches_table": parsed}
