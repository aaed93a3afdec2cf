"""The look that all pictures of the package share: fonts, colours, and how a figure becomes a file.

matplotlib is imported when something is drawn, so that a command which draws nothing does not wait for it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fseg_jax.files.atomic import replace_atomically

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
INK, FAINT, RULE = "#1c1e24", "#696e78", "#dadce2"  # text, captions, lines

_STYLE: dict[Any, Any] = {  # matplotlib types the keys since 3.11
    "font.size": 8,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same letters on every machine
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fseg",  # the same figure, the same file
}
# matplotlib's settings belong to the whole process, so one thread draws at a time.
_LOCK = threading.RLock()


@contextmanager
def use_style() -> Iterator[None]:
    """Draw and save in the package's style until the block ends."""
    import matplotlib as mpl

    with _LOCK, mpl.rc_context(_STYLE):
        yield


def list_legend_once(axes: "Axes") -> "tuple[list[Artist], list[str]]":
    """List the legend's entries of some axes, each label once: handles and labels."""
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    return list(entries.values()), list(entries)


def save_figure(figure: "Figure", path: Path, dpi: int = 200) -> None:
    """Write a figure as PNG or SVG, by the path's suffix; the same figure gives the same bytes.

    Raises:
        OutputError: The file cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else None
    with replace_atomically(path) as part:
        figure.savefig(part, dpi=dpi, format=kind, metadata=metadata)
