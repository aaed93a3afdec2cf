"""An encoder by its name: its weights from a file, from the cache, or from where they are published.

What is published is converted once for each dtype and kept as
``$FSEG_CACHE/encoders/NAME/published-DTYPE.safetensors``; a checkpoint given as a file is kept beside it
under the start of its own hash. Files of ours carry the hash of their bytes: a damaged one is made again.
"""

import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fseg_jax.encoders import hub, weights_file
from fseg_jax.encoders.catalog import lookup
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.efficientnet.network import EfficientNet
from fseg_jax.encoders.encoder import Encoder, EncoderCard, of_network
from fseg_jax.encoders.hub import Status, fetch_checkpoint
from fseg_jax.encoders.layers import Network
from fseg_jax.encoders.resnet.network import ResNet
from fseg_jax.encoders.rows import Row
from fseg_jax.encoders.swin.network import SwinConfig
from fseg_jax.encoders.trained import DTYPES, SHIPPED, check_dtype, load_trained
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.encoders.weights_file import Loaded
from fseg_jax.errors import InputError
from fseg_jax.files.downloads import cache_folder
from fseg_jax.files.kinds import is_ours, kind_of
from fseg_jax.files.paths import is_file
from fseg_jax.files.tensor_header import BrokenFileError, read_header

# F-SEG's resolution in µm per pixel, whatever an encoder was trained at: its tokens of 14 or 16 µm see
# tissue.
MPP = 1.0
CNN_TILE = 512
_ABANDONED = 24 * 3600  # seconds after which a half-written file's writer is taken for dead

_log = logging.getLogger(__name__)


class CachedFile(NamedTuple):
    """A converted file in the cache: whose weights, where, and its size in bytes."""

    name: str
    path: Path
    size: int


def load_encoder(
    name: str | Path, *, weights: str | Path | None = None, dtype: str = "float32", last: bool = False
) -> Encoder:
    """The encoder of a name, ready to call on images: ``he-small`` and ``classical``, which come with the
    program, one of the catalog, ``timm:NAME``, or the file that ``fseg pretrain`` wrote.

    ``weights`` is a published checkpoint or a converted file, instead of the cache and the hub. ``dtype`` is
    ``float32`` or ``bfloat16``: of the products' operands; sums, norms and features are float32, and a line
    says where bfloat16 is the slower on this processor. The card
    asks for images at 1 µm per pixel, F-SEG's resolution, and for tiles of the size that a transformer was
    published for. Encoders of one architecture, layer and dtype compile once between them.

    F-SEG reads a published CNN before its last stage (``card.layer``); with ``last`` it is read at its end,
    as SIC does. Nothing else has a later layer.

    InputError, in one line that says what to do, for an unknown name; for weights that are not here and
    cannot be had (no network, no access, no room); and for ones that are damaged or another encoder's.
    """
    name = str(name)
    if name.lower() == "classical":
        if weights is not None:
            raise InputError(
                "the encoder classical has no weights: leave --weights out, or name another encoder"
            )
        return classical()
    if name.lower() in SHIPPED or name.endswith(".safetensors"):
        if weights is not None:
            raise InputError(f"the encoder {name} has its own weights: leave --weights out")
        return load_trained(name, dtype=dtype)
    if Path(name).is_file():
        raise InputError(f"{name}: {kind_of(name)}, not an encoder: give a name, or what fseg pretrain wrote")
    row = lookup(name)
    network, metadata = load_network(name, weights=weights, dtype=dtype)
    card = _card(row, metadata["source_sha256"])
    return of_network(network, _at_the_end(network, card) if last else card)


def _at_the_end(network: Network, card: EncoderCard) -> EncoderCard:
    """The card of a CNN's last layer, of which stride and channels are others."""
    if not isinstance(network, ResNet | EfficientNet):
        return card
    layer = network.layers()[-1]
    images = jax.ShapeDtypeStruct((1, card.tile, card.tile, 3), jnp.float32)
    _, h, _, c = jax.eval_shape(lambda x: network.grid(x, layer), images).shape
    return replace(card, layer=layer, channels=c, stride=card.tile // h)


def load_network(name: str, *, weights: str | Path | None = None, dtype: str = "float32") -> Loaded:
    """The network of a catalog's name with its weights in place, and what their file says of itself.

    Arguments and errors are those of ``load_encoder``.
    """
    row = lookup(name)
    check_dtype(dtype)
    if weights is None:
        return _published(row, dtype)
    path = Path(weights)
    if not _is_ours(path):
        return _given(row, path, dtype)
    loaded = weights_file.load(path, dtype=DTYPES[dtype])
    if loaded.metadata.get("name") != row.name:
        raise InputError(
            f"{path}: holds the weights of {loaded.metadata.get('name')}, not of {row.name}: "
            "name that encoder, or give another file"
        )
    return loaded


def status(row: Row, *, timeout: float = 3.0) -> Status:
    """Whether an encoder's weights are here, and otherwise whether they can be had; nothing is fetched."""
    if files := [file for file in cached() if file.name == _folder(row).name and _is_published(file.path)]:
        found = ", ".join(f"{file.path} ({file.size / 1e6:,.0f} MB)" for file in files)
        return Status("cached", found)
    if (path := hub.downloaded(row)) is not None:
        return Status("cached", f"{path} (as published; converted when it is first used)")
    return hub.access(row, timeout=timeout)


def cached() -> list[CachedFile]:
    """The converted weights in the cache."""
    paths = sorted((cache_folder() / "encoders").glob("*/[!.]*.safetensors"))
    return [CachedFile(path.parent.name, path, path.stat().st_size) for path in paths]


def is_here(name: str) -> bool:
    """Whether ``load_encoder(name)`` has all it needs on this machine, and fetches nothing."""
    if name.lower() == "classical" or name.lower() in SHIPPED:
        return True
    if name.endswith(".safetensors"):
        return Path(name).is_file()
    try:
        row = lookup(name)
    except InputError:
        return False
    return any(_folder(row).glob("published-*.safetensors")) or hub.downloaded(row) is not None


def _published(row: Row, dtype: str) -> Loaded:
    """The weights as published, from the cache, or fetched and converted into it."""
    path = _folder(row) / f"published-{dtype}.safetensors"
    if (loaded := _from_cache(path, dtype)) is not None:
        return loaded
    _require_room(row, dtype)
    new = not any(_folder(row).glob("published-*"))
    checkpoint = fetch_checkpoint(row)
    if new:
        _say_licence(row)
    try:
        _convert(row, checkpoint, path, dtype)
    except InputError:
        if row.url:  # it came without a hash to check: another try fetches it again
            checkpoint.unlink(missing_ok=True)
        raise
    return weights_file.load(path, dtype=DTYPES[dtype])


def _given(row: Row, checkpoint: Path, dtype: str) -> Loaded:
    """The weights of a published checkpoint that the user has, converted into the cache when they are new to
    it.
    """
    from fseg_jax.encoders.checkpoint import sha256

    if not is_file(checkpoint):
        raise InputError(
            f"{checkpoint}: no such file: give a published checkpoint of {row.name}, or a converted one"
        )
    if is_ours(checkpoint):
        raise InputError(f"{checkpoint}: {kind_of(checkpoint)}, not a checkpoint of {row.name}: give that")
    try:
        digest = sha256(checkpoint)
    except OSError as error:
        raise InputError(f"{checkpoint}: cannot be read ({error.strerror}): give a file that can") from error
    path = _folder(row) / f"{digest[:16]}-{dtype}.safetensors"
    if (loaded := _from_cache(path, dtype)) is not None:
        return loaded
    _require_room(row, dtype)
    new = not any(_folder(row).glob(f"{digest[:16]}-*"))
    _convert(row, checkpoint, path, dtype)
    if new:
        _say_licence(row)
    return weights_file.load(path, dtype=DTYPES[dtype])


def _from_cache(path: Path, dtype: str) -> Loaded | None:
    if not path.exists():
        return None
    try:
        return weights_file.load(path, dtype=DTYPES[dtype])
    except InputError as error:
        # Damaged, or of a version before this one.
        reason = str(error).removeprefix(f"{path}: ").partition(": ")[0]
        _log.warning("%s: %s: it is made again", path, reason)
        return None


def _convert(row: Row, checkpoint: Path, path: Path, dtype: str) -> None:
    from fseg_jax.encoders.convert import convert_file

    for left in path.parent.glob(".*.safetensors.*"):
        if left.exists() and time.time() - left.stat().st_mtime > _ABANDONED:
            left.unlink(missing_ok=True)
    convert_file(checkpoint, path, row.config, name=row.name, dtype=DTYPES[dtype])


def _require_room(row: Row, dtype: str) -> None:
    """Said before the gigabytes come, rather than after."""
    folder, needed = _folder(row), row.parameters * jnp.dtype(DTYPES[dtype]).itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}): set FSEG_CACHE to a folder that can"
        ) from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written: set FSEG_CACHE to a folder that can")
    if free < needed:
        raise InputError(
            f"{folder}: {free / 1e9:.1f} GB are free and {row.name} takes {needed / 1e9:.1f} GB: "
            "free the disk, or set FSEG_CACHE to a folder with room"
        )


def _say_licence(row: Row) -> None:
    _log.warning("%s: licence %s, see %s. Cite %s", row.name, row.licence, row.page, row.citation)


def _folder(row: Row) -> Path:
    return cache_folder() / "encoders" / row.name.replace(":", "-")


def _is_published(path: Path) -> bool:
    return path.name.startswith("published-")


def _is_ours(path: Path) -> bool:
    try:
        return read_header(path).metadata.get("format") == weights_file.FORMAT
    except (BrokenFileError, OSError):
        return False


def _card(row: Row, weights_hash: str) -> EncoderCard:
    transformer = isinstance(row.config, ViTConfig | SwinConfig)
    return EncoderCard(
        name=row.name,
        layer=row.layer,
        channels=row.channels,
        stride=row.stride,
        tile=round(row.input_size / row.stride) * row.stride if transformer else CNN_TILE,
        mpp=MPP,
        mean=row.mean,
        std=row.std,
        licence=row.licence,
        citation=row.citation,
        weights_hash=weights_hash,
    )
