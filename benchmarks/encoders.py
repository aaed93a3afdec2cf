"""Are the encoders faster? Images a second through the map that F-SEG reads.

    python -m benchmarks.encoders [--tiny] [NAME …]

Beside torch with timm, at the best of its settings here: float32 and bfloat16 (autocast), eager and
``torch.compile``, channels last for the convolutional ones, as many threads as there are cores. The same
random weights on both sides; the maps are compared, and a mismatch is an error. Needs torch and timm.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measure import OURS, REPEATS, absent, cores, interleaved, matrix_rate, row, save
from fseg_jax.encoders.catalog import CATALOG
from fseg_jax.encoders.load import load_encoder
from weights_convert.convert import network_from


class Peer(NamedTuple):
    """An architecture that timm has too: its row of our catalog, timm's name and arguments, the image and the
    batch."""

    row: str
    name: str
    arguments: dict[str, Any]
    side: int
    batch: int


VIT = {"num_classes": 0, "img_size": 224}
PEERS = {
    "ViT-S/16": Peer("kaiko-s16", "vit_small_patch16_224", VIT, 224, 8),
    "ViT-L/16": Peer("uni", "vit_large_patch16_224", {**VIT, "init_values": 1e-5}, 224, 8),
    "ViT-H/14 SwiGLU": Peer(
        "virchow", "vit_huge_patch14_224", {**VIT, "init_values": 1e-5, "mlp_ratio": 5.3375}, 224, 2
    ),
    "ViT-g/14 SwiGLU": Peer(
        "h-optimus-0", "vit_giant_patch14_reg4_dinov2", {**VIT, "init_values": 1e-5}, 224, 2
    ),
    "ResNet-50 to stride 16": Peer("resnet50", "resnet50", {"num_classes": 0}, 256, 8),
}
TARGET = {"cpu": 1.0, "gpu": 1.15}
SAME = 3e-2  # of bfloat16 maps


def compare(title: str, peer: Peer, repeats: int, compiled: bool) -> dict[str, Any]:
    """One architecture, our two precisions and torch's settings."""
    torch: Any = importlib.import_module("torch")
    references: Any = importlib.import_module("weights_convert.references")
    timm = references.import_timm()
    torch.set_num_threads(cores())
    arguments = dict(peer.arguments)
    if "SwiGLU" in title:
        layers: Any = importlib.import_module("timm.layers")
        arguments |= {"mlp_layer": layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    module = references.scatter(timm.create_model(peer.name, **arguments), seed=0)
    entry = CATALOG[peer.row]
    state = references.published(module)
    x = np.random.default_rng(0).standard_normal((peer.batch, peer.side, peer.side, 3), np.float32)
    sides: dict[str, Callable[[], Any]] = {}
    maps: dict[str, np.ndarray] = {}
    images = jnp.asarray(x)
    for dtype in ("float32", "bfloat16"):
        network = network_from(state, entry.config, what=peer.row, dtype=jnp.dtype(dtype))
        graphdef, weights = nnx.split(network)

        @jax.jit
        def grid(weights: Any, x: jax.Array, graphdef: Any = graphdef) -> jax.Array:
            return nnx.merge(graphdef, weights).grid(x, entry.layer)

        name = f"{OURS} {dtype}"
        sides[name] = partial(grid, weights, images)
        maps[name] = np.asarray(sides[name]())
    costs = grid.lower(weights, images).cost_analysis()
    operations = float(costs.get("flops", 0.0)) if costs else 0.0
    convolutional = peer.row.startswith("resnet")
    if convolutional:  # what is after the map is not to be computed
        module = torch.nn.Sequential(
            module.conv1, module.bn1, module.act1, module.maxpool, module.layer1, module.layer2, module.layer3
        )
        module = module.to(memory_format=torch.channels_last)
    else:
        assert entry.layer == f"blocks.{len(module.blocks) - 1}"
        module.norm = torch.nn.Identity()
        module.forward = module.forward_features
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    if convolutional:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    for kind in ("eager", "compiled") if compiled else ("eager",):
        net = torch.compile(module) if kind == "compiled" else module
        for dtype in ("float32", "bfloat16"):

            def run(net: Any = net, half: bool = dtype == "bfloat16") -> Any:
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                    return net(pixels)

            try:
                run()
            except Exception as failure:  # no compiler on this machine
                print(f"torch {kind} {dtype}: {str(failure).splitlines()[0]}", flush=True)
                continue
            sides[f"torch {kind} {dtype}"] = run
    with torch.inference_mode():
        theirs = module(pixels).float()
    if convolutional:
        reference = theirs.permute(0, 2, 3, 1).numpy()
    else:
        size = peer.side // entry.stride
        reference = theirs[:, entry.prefix :].reshape(peer.batch, size, size, -1).numpy()
    error = float(np.linalg.norm(maps[f"{OURS} bfloat16"] - reference) / np.linalg.norm(reference))
    if not error < SAME:
        raise SystemExit(f"{title}: not the same map: {error:.3g}")
    timings = interleaved(sides, repeats)
    backend = "gpu" if jax.default_backend() == "gpu" else "cpu"
    return row(
        f"{title}, {peer.side} px, batch {peer.batch}",
        "images/s",
        peer.batch,
        timings,
        target=TARGET[backend],
        limit=matrix_rate("bfloat16") * peer.batch / operations if operations else None,
        limited_by="products in bfloat16",
        relative_error=error,
    )


def he_small(repeats: int, side: int = 224, batch: int = 8) -> dict[str, Any]:
    """he-small beside the same trunk in torch."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(cores())
    x = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    images = jnp.asarray(x)
    sides: dict[str, Callable[[], Any]] = {}
    for dtype in ("float32", "bfloat16"):
        encoder = load_encoder("he-small", dtype=dtype)
        sides[f"{OURS} {dtype}"] = partial(encoder, images)
    net = trunk(torch).eval().to(memory_format=torch.channels_last)
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)
    for dtype in ("float32", "bfloat16"):

        def run(half: bool = dtype == "bfloat16") -> Any:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                return net(pixels)

        sides[f"torch eager {dtype}, the trunk alone"] = run
    return row(
        f"he-small, {side} px, batch {batch}",
        "images/s",
        batch,
        interleaved(sides, repeats),
        target=1.0,
    )


def trunk(torch: Any) -> Any:
    """he-small's trunk in torch, folded: the same convolutions, which is all that takes time."""
    from fseg_jax.training.simclr import TRUNK

    assert TRUNK.patches and TRUNK.block == "basic"
    nn: Any = torch.nn
    base: type = nn.Module

    class Block(base):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(before, after, 3, stride, 1)
            self.second = nn.Conv2d(after, after, 3, 1, 1)
            same = stride == 1 and before == after
            self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))

    parts: list[Any] = [nn.PixelUnshuffle(4), nn.Conv2d(48, TRUNK.stem_channels, 3, 1, 1), nn.ReLU()]
    before = TRUNK.stem_channels
    for stage, (depth, channels) in enumerate(zip(TRUNK.depths, TRUNK.channels, strict=False)):
        for number in range(depth):
            parts.append(Block(before, channels, 2 if stage and not number else 1))
            before = channels
    return nn.Sequential(*parts)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
@click.option("--no-compile", is_flag=True, help="Leave torch.compile out.")
def main(names: tuple[str, ...], tiny: bool, no_compile: bool) -> None:
    if absent("torch") or absent("timm"):
        return
    rows: list[dict[str, Any]] = []
    for title, peer in PEERS.items():
        if (names and not any(name in title for name in names)) or (tiny and title != "ViT-S/16"):
            continue
        peer = peer._replace(batch=1) if tiny else peer
        rows.append(compare(title, peer, 1 if tiny else REPEATS, compiled=not (tiny or no_compile)))
        save("encoders", rows, tiny=tiny)  # after each: the largest take minutes
    if tiny or not names or "he-small" in names:
        rows.append(he_small(1, side=64, batch=1) if tiny else he_small(REPEATS))
    save("encoders", rows, tiny=tiny)


if __name__ == "__main__":
    main()
