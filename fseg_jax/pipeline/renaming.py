"""Rename the clusters of slides that are finished: every output of a slide at once, and nothing segmented.

The PNG holds what it was drawn from (``outputs.picture``), so neither the slide nor its labels are read.
"""

import json
from pathlib import PurePosixPath
from typing import Any

from fseg_jax.errors import InputError
from fseg_jax.files.storage import Storage
from fseg_jax.outputs.cluster_names import Clusters
from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.figures import redraw_overlay
from fseg_jax.outputs.form import OutputForm
from fseg_jax.outputs.labels import locate_labels
from fseg_jax.outputs.picture import read_picture
from fseg_jax.outputs.renaming import rename_areas, rename_features, rename_labels
from fseg_jax.outputs.report import encode_thumbnail
from fseg_jax.pipeline.publish import Json, encode_json
from fseg_jax.pipeline.segment import FORMAT

_STAND_ALONE = 3  # the format in which labels stood alone
_FORMATS = (_STAND_ALONE, FORMAT)
_BY_NAME = ("areas_mm2", "colours", "border_share")  # of a record: values of all clusters, by name


def read_record(data: bytes | None, where: str) -> Json | None:
    """Read the record of a slide that was segmented; None where it is something else's.

    Raises:
        InputError: It is of another version of the program.
    """
    try:
        record = json.loads(data or b"null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not {"areas_mm2", "codebook", "encoder"} <= record.keys():
        return None
    if record.get("format") not in _FORMATS:
        raise InputError(f"{where}: made by another version of this program; segment the slide again")
    facts: list[Any] = [record.get(key) for key in (*_BY_NAME, "typical", "outlines")]
    if not all(isinstance(values, dict) for values in facts) or not (
        list(facts[0]) == list(facts[1]) == list(facts[2]) and facts[3].keys() <= facts[0].keys()
    ):
        raise InputError(f"{where}: damaged; segment the slide again")
    return record


def list_clusters(record: Json) -> list[tuple[str, str]]:
    """List the names and colours of a record's clusters."""
    return list(record["colours"].items())


def rename_slide(storage: Storage, name: str, record: Json, clusters: Clusters) -> None:
    """Rename the clusters of a slide in all of its outputs, which appear at once.

    Args:
        storage: Where they are.
        name: The slide's name.
        record: Its record.
        clusters: What its k clusters are called now.

    Raises:
        InputError: An output is gone or damaged, or another run is making it.
        OutputError: The outputs cannot be written.
    """
    before = list(record["areas_mm2"])
    form = _read_form(record, f"{storage.url}/{name}.json")
    group = locate_labels(PurePosixPath(f"{name}.ome.zarr")) if form.image else f"{name}.ome.zarr"
    classes = Clusters(form.name_classes(clusters.names, name), clusters.colours)
    labels, thumbnail = f"{group}/zarr.json", f"thumbnails/{name}.jpg"
    keys = [f"{name}.json", labels, f"{name}.geojson", f"{name}.png", f"{name}.csv"]
    with storage.open_workplace(name) as folder:
        files = storage.read_all([*keys, thumbnail])
        if gone := [key for key in keys if key not in files]:
            raise InputError(f"{storage.url}/{gone[0]}: is gone; segment the slide again")
        for key in files:
            (folder / key).parent.mkdir(exist_ok=True, parents=True)
        key = ""
        try:
            key = keys[2]
            geojson = rename_features(files[key], form.name_classes(tuple(before), name), classes)
            (folder / key).write_bytes(geojson)
            key = labels
            (folder / key).write_bytes(rename_labels(files[key], clusters))
            key = keys[4]
            (folder / key).write_bytes(rename_areas(files[key], clusters))
            key = keys[3]
            redraw_overlay(files[key], folder / key, names=clusters.names, colours=clusters.colours)
            if thumbnail in files:
                picture = read_picture(files[key])
                data = encode_thumbnail(picture.image, picture.labels, clusters.colours)
                (folder / thumbnail).write_bytes(data)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error) if type(error) is ValueError and key == keys[3] else "it is damaged"
            raise InputError(
                f"{storage.url}/{key}: cannot be renamed, {reason}; segment the slide again"
            ) from None
        (folder / keys[0]).write_bytes(encode_json(_rename_record(record, clusters, len(geojson))))
        storage.publish(folder, list(files))


def _read_form(record: Json, where: str) -> OutputForm:
    """Read how a slide's outputs are written."""
    try:
        return OutputForm(**record["form"]) if record["format"] > _STAND_ALONE else OutputForm(image=False)
    except (LookupError, TypeError, AttributeError, InputError):
        raise InputError(f"{where}: damaged; segment the slide again") from None


def _rename_record(record: Json, clusters: Clusters, outline_bytes: int) -> Json:
    """Rename the clusters of a record."""
    called = dict(zip(record["areas_mm2"], clusters.names, strict=True))
    renamed: dict[str, Any] = {
        key: {called[name]: value for name, value in record[key].items()} for key in (*_BY_NAME, "typical")
    }
    colours = map(format_hex, clusters.colours)
    renamed["colours"] = dict(zip(clusters.names, colours, strict=True))
    return record | renamed | {"outlines": record["outlines"] | {"bytes": outline_bytes}}
