"""Names and colours that somebody gives to clusters, in a CSV file: ``cluster,name,colour``.

A line with neither leaves its cluster as it is.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from fseg_jax.errors import InputError
from fseg_jax.outputs.colours import format_hex, make_default_names, make_palette
from fseg_jax.outputs.csv_table import format_csv, parse_table, read_table

COLUMNS = ("cluster", "name", "colour")
# A cluster's name is the heading of a column in a cohort's areas.csv, beside these.
_HEADINGS = ("slide_id", "site", "split", "tissue_mm2")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_LONGEST_NAME = 200  # letters
_WANTED = "names are CSV with the columns cluster, name and, if wanted, colour"


class Clusters(NamedTuple):
    """What clusters 1…k are called, and how they are drawn.

    Attributes:
        names: Their names.
        colours: Their colours.
    """

    names: tuple[str, ...]
    colours: UInt8[np.ndarray, "k 3"]


class NamedCluster(NamedTuple):
    """A line of a file of names.

    Attributes:
        cluster: The cluster's number, from 1.
        name: Its name.
        colour: Its colour; None: the palette's.
        line: The line of the file.
    """

    cluster: int
    name: str
    colour: tuple[int, int, int] | None
    line: int


@dataclass(frozen=True)
class ClusterNames:
    """Names for some of the clusters.

    Attributes:
        source: Where they are from.
        named: The clusters that have one.
    """

    source: str
    named: tuple[NamedCluster, ...]

    def apply(self, k: int, what: str = "the codebook") -> Clusters:
        """Name clusters 1…k; those without a name of their own keep ``cluster N``.

        Args:
            k: Number of clusters.
            what: What has k clusters, for errors.

        Raises:
            InputError: A cluster is named that there is not, or two would have the same name.
        """
        names, colours = list(make_default_names(k)), make_palette(k)
        for cluster, name, colour, line in self.named:
            if cluster > k:
                raise InputError(
                    f"{self.source}: line {line}: there is no cluster {cluster}: {what} has {k}; "
                    "take the line out"
                )
            names[cluster - 1] = name
            if colour is not None:
                colours[cluster - 1] = colour
        for name, count in Counter(names).items():
            if count > 1:
                raise InputError(
                    f"{self.source}: two clusters would be called {name!r}: give each a name of its own"
                )
        return Clusters(tuple(names), colours)

    def keep(self, before: Clusters) -> "ClusterNames":
        """Add the names and colours that clusters have already, where none are given.

        Args:
            before: What the clusters are called.
        """
        usual = name_clusters(None, len(before.names))
        given = {each.cluster: each for each in self.named}
        named = []
        for cluster, (name, colour, usual_name, usual_colour) in enumerate(
            zip(*before, *usual, strict=True), 1
        ):
            red, green, blue = colour.tolist()
            own = None if (colour == usual_colour).all() else (red, green, blue)
            if cluster in given:
                new = given.pop(cluster)
                named.append(new if new.colour else new._replace(colour=own))
            elif own or name != usual_name:
                named.append(NamedCluster(cluster, name, own, 0))
        return ClusterNames(self.source, (*named, *given.values()))


def name_clusters(names: ClusterNames | None, k: int, what: str = "the codebook") -> Clusters:
    """Name clusters 1…k, by default ``cluster 1``, ``cluster 2`` and so on."""
    return (names or ClusterNames("", ())).apply(k, what)


def load_names(path: str | Path) -> ClusterNames:
    """Read a file of names.

    Raises:
        InputError: The file cannot be read, or is no CSV in UTF-8 with the columns ``cluster`` and ``name``;
            or a line of it has no cluster's number, no name that can be, or a colour that is none.
    """
    return parse_names(read_table(path, _WANTED), str(path))


def parse_names(content: bytes, source: str) -> ClusterNames:
    """Parse the content of a file of names; ``source`` is where it is from, for errors."""
    named: dict[int, NamedCluster] = {}
    lines_of: dict[str, int] = {}
    for line, row in parse_table(content, source, COLUMNS, 2, _WANTED):
        where = f"{source}: line {line}"
        cluster = _parse_number(row["cluster"], where)
        if cluster in named:
            raise InputError(f"{where}: cluster {cluster} is also on line {named[cluster].line}; keep one")
        if not row["name"] and not row.get("colour"):
            continue
        name = check_name(row["name"], where)
        if (before := lines_of.setdefault(name, line)) != line:
            raise InputError(
                f"{where}: {name!r} is also the name on line {before}: give each cluster a name of its own"
            )
        named[cluster] = NamedCluster(cluster, name, _parse_colour(row.get("colour", ""), where), line)
    if not named:
        raise InputError(f"{source}: no names, only a header or lines without one")
    return ClusterNames(source, tuple(named.values()))


def _parse_number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0):
        raise InputError(f"{where}: {text!r} is no number of a cluster; they count from 1")
    return int(text[:9])


def check_name(name: str, where: str) -> str:
    """Check that a cluster can be called so, and return the name; ``where`` is where it stands, for errors.

    Raises:
        InputError: It cannot.
    """
    if not name:
        raise InputError(f"{where}: the name is empty; give one, or take the line out")
    if ":" in name:
        raise InputError(f"{where}: {name!r} holds a colon, where QuPath splits classes; leave it out")
    if not name.isprintable():
        raise InputError(f"{where}: {name!r} holds a character that cannot be printed; leave it out")
    if len(name) > _LONGEST_NAME:
        raise InputError(f"{where}: a name of {len(name)} letters; {_LONGEST_NAME} at most")
    if name in _HEADINGS:
        raise InputError(f"{where}: {name!r} is a column of areas.csv already; choose another name")
    return name


def _parse_colour(text: str, where: str) -> tuple[int, int, int] | None:
    if not text:
        return None
    if not _COLOUR.fullmatch(text):
        raise InputError(f"{where}: {text!r} is no colour; write it as #rrggbb, for example #009e73")
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def format_names(names: ClusterNames) -> bytes:
    """Format names as the file that ``load_names`` reads."""
    rows = [
        {"cluster": each.cluster, "name": each.name, "colour": format_hex(each.colour) if each.colour else ""}
        for each in names.named
    ]
    return format_csv(COLUMNS, rows).encode()
