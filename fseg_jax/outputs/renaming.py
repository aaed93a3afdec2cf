"""A slide's outputs in other names and colours of its clusters: the bytes of each file, from those it has."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from fseg_jax.files.zarr import encode_group
from fseg_jax.outputs.cluster_names import Clusters
from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.csv_table import format_csv, unguard_cell
from fseg_jax.outputs.geojson import describe_classes, encode_compact, identify_feature
from fseg_jax.outputs.labels import describe_labels


def rename_labels(metadata: bytes, clusters: Clusters) -> bytes:
    """Rename the classes in the metadata of a label pyramid, its ``zarr.json``."""
    attributes = json.loads(metadata)["attributes"]
    attributes["ome"]["image-label"] |= describe_labels(*clusters)
    return encode_group(attributes, ascii_only=True).encode()


def rename_features(geojson: bytes, before: Sequence[str], clusters: Clusters) -> bytes:
    """Rename the classes of annotations; ``before`` are the clusters' names in the file."""
    content = json.loads(geojson)
    classes = dict(zip(before, describe_classes(*clusters), strict=True))
    lines = [_rename_feature(feature, classes) for feature in content.pop("features")]
    head = encode_compact(content).removesuffix("}")
    body = "".join(
        f"{separator}\n{line}" for separator, line in zip(("", *"," * len(lines)), lines, strict=False)
    )
    return f'{head},"features":[{body}\n]}}\n'.encode()


def _rename_feature(feature: dict[str, Any], classes: dict[str, dict[str, Any]]) -> str:
    """Rename the class of an annotation, and return its JSON."""
    properties = feature["properties"]
    classification = classes[properties["classification"]["name"]]
    renamed = properties | {"name": classification["name"], "classification": classification}
    identity = identify_feature(classification["name"], encode_compact(feature["geometry"]))
    return encode_compact(feature | {"id": identity, "properties": renamed})


def rename_areas(table: bytes, clusters: Clusters) -> bytes:
    """Rename the clusters in a slide's table of areas."""
    reader = csv.DictReader(io.StringIO(table.decode(), newline=""))
    columns = list(reader.fieldnames or ())
    rows = [
        {column: unguard_cell(cell) for column, cell in row.items()}
        | {"name": name, "colour": format_hex(colour)}
        for row, name, colour in zip(reader, *clusters, strict=True)
    ]
    return format_csv(columns, rows).encode()


def rename_columns(table: bytes, before: int, clusters: Clusters) -> bytes:
    """Rename the columns of clusters in a cohort's table of areas; ``before`` others come first."""
    head, newline, rest = table.decode().partition("\n")
    columns = next(csv.reader([head]))
    if len(columns) != before + len(clusters.names):
        raise ValueError("it has other clusters")
    renamed = format_csv([*columns[:before], *clusters.names], [])
    return (renamed.removesuffix("\n") + newline + rest).encode()
