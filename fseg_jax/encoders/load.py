"""From a name to an encoder, by one way that never turns back.

- a name of the program's own: ``classical`` has no weights, ``he-small`` is read by ``trained``;
- a file that ``fseg pretrain`` wrote: ``trained``;
- a name of the catalog: ``catalog.names`` finds its row, ``weights.cache`` loads the network of that row, and
  ``encoder`` reads the network at the layer of the row;
- several of them with a ``+`` between: ``side_by_side`` joins what each name gives.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from fseg_jax.encoders.catalog.names import find_row
from fseg_jax.encoders.catalog.row import Row
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.efficientnet.network import EfficientNet
from fseg_jax.encoders.encoder import Encoder, EncoderCard, JaxEncoder, build_encoder
from fseg_jax.encoders.layers import Network
from fseg_jax.encoders.precision import parse_dtype
from fseg_jax.encoders.resnet.network import ResNet
from fseg_jax.encoders.side_by_side import SIGN, join_encoders
from fseg_jax.encoders.swin.network import SwinConfig
from fseg_jax.encoders.trained import SHIPPED, load_trained
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.encoders.weights import cache
from fseg_jax.encoders.weights.weights_file import LoadedNetwork
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import describe_kind

MPP = 1.0  # µm per pixel of F-SEG, whatever an encoder was trained at: its tokens of 14 or 16 µm see tissue
CNN_TILE = 512  # pixels a side of the images that a convolutional network is fed


def load_encoder(
    name: str | Path, *, weights: str | Path | None = None, dtype: str = "float32", last: bool = False
) -> Encoder:
    """Load an encoder by its name, ready to call on images.

    Its card asks for images at 1 µm per pixel, F-SEG's resolution, and for tiles of the size that a
    transformer was published for. Encoders of one architecture, layer and dtype compile once between them.

    Args:
        name: ``he-small`` or ``classical``, which come with the program; a name of the catalog;
            ``timm:NAME``; the file that ``fseg pretrain`` wrote; or several with a ``+`` between, whose
            features are then side by side (``side_by_side.py``).
        weights: a published checkpoint or a converted file, to use instead of the cache and the hub.
        dtype: ``float32``, ``tf32`` or ``bfloat16``, the precision of the operands of products
            (``precision.py``). Sums, norms and features are float32. A warning says where bfloat16 is the
            slower on this processor.
        last: read a published CNN at its last layer, as SIC does. F-SEG reads it before its last stage
            (``card.layer``). Other encoders have no later layer.

    Raises:
        InputError: the name is unknown; the weights are not here and cannot be fetched (no network, access or
            room); or they are damaged or another encoder's. The message is one line that says what to do.

    >>> load_encoder("classical").card.stride
    16
    """
    name = str(name)
    if len(parts := split_name(name)) > 1:
        if weights is not None:
            raise InputError(
                f"the encoder {name} is several: leave --weights out; each takes its own from the cache"
            )
        return join_encoders([_load_one(part, None, dtype, last) for part in parts])
    return _load_one(name, weights, dtype, last)


def _load_one(name: str, weights: str | Path | None, dtype: str, last: bool) -> JaxEncoder:
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
        raise InputError(
            f"{name}: {describe_kind(name)}, not an encoder: give a name, or what fseg pretrain wrote"
        )
    network, metadata = load_network(name, weights=weights, dtype=dtype)
    card = _card(find_row(name), metadata["source_sha256"])
    return build_encoder(network, _read_last(network, card) if last else card, dtype)


def load_network(name: str, *, weights: str | Path | None = None, dtype: str = "float32") -> LoadedNetwork:
    """Load the network of a catalog's name with its weights, and the metadata of their file.

    Arguments and errors are those of ``load_encoder``.
    """
    row = find_row(name)
    precision = parse_dtype(dtype)
    if weights is None:
        return cache.load_published(row, precision)
    return cache.load_given(row, Path(weights), precision)


def split_name(name: str) -> list[str]:
    """Split the name of encoders side by side into theirs; any other name, or a file's, is returned alone.

    >>> split_name("he-small+efficientnet-lite0"), split_name("uni")
    (['he-small', 'efficientnet-lite0'], ['uni'])
    """
    return [name] if Path(name).is_file() else name.split(SIGN)


def is_known(name: str) -> bool:
    """Whether a name, by itself, says which encoder it is: that of no file."""

    def is_known_alone(part: str) -> bool:
        if _comes_with_program(part):
            return True
        try:
            find_row(part)
        except InputError:
            return False
        return True

    return bool(name) and all(map(is_known_alone, split_name(name)))


def is_local(name: str) -> bool:
    """Whether ``load_encoder(name)`` has all that it needs on this machine, and fetches nothing."""
    if len(parts := split_name(name)) > 1:
        return all(map(is_local, parts))
    if _comes_with_program(name):
        return True
    if name.endswith(".safetensors"):
        return Path(name).is_file()
    try:
        row = find_row(name)
    except InputError:
        return False
    return cache.is_local(row)


def _read_last(network: Network, card: EncoderCard) -> EncoderCard:
    """Change a CNN's card to read the last layer, with its stride and channels; others stay."""
    if not isinstance(network, ResNet | EfficientNet):
        return card
    layer = network.layers()[-1]
    images = jax.ShapeDtypeStruct((1, card.tile, card.tile, 3), jnp.float32)
    _, h, _, c = jax.eval_shape(lambda x: network.grid(x, layer), images).shape
    return replace(card, layer=layer, channels=c, stride=card.tile // h)


def _card(row: Row, weights_hash: str) -> EncoderCard:
    is_transformer = isinstance(row.config, ViTConfig | SwinConfig)
    return EncoderCard(
        name=row.name,
        layer=row.layer,
        channels=row.channels,
        stride=row.stride,
        tile=round(row.input_size / row.stride) * row.stride if is_transformer else CNN_TILE,
        mpp=MPP,
        mean=row.normalisation.mean,
        std=row.normalisation.std,
        licence=row.licence,
        citation=row.citation,
        weights_hash=weights_hash,
    )


def _comes_with_program(name: str) -> bool:
    return name.lower() in ("classical", *SHIPPED)
