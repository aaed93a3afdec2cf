"""Measure the speed of encoders: images a second up to the map that F-SEG reads.

    python -m benchmarks.encoders [--tiny] [NAME …]

The peer is torch with timm, at each of its settings: float32 and bfloat16 (autocast; on a GPU weights of
bfloat16), eager and ``torch.compile``, channels last for convolutional networks, a thread for each core. It
runs where JAX does: on a GPU if JAX has one, with larger batches. Both sides have the same random weights;
their maps are compared, and a mismatch is an error. Needs torch and timm.
"""

import copy
import importlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measure import (
    OURS,
    REPEATS,
    count_cores,
    is_missing,
    measure_matrix_rate,
    report_row,
    save_result,
    time_interleaved,
)
from fseg_jax.encoders.catalog.published import CATALOG
from fseg_jax.encoders.classical import BINS, MAX_DENSITY, STRIDE, UNMIXING, classical
from fseg_jax.encoders.encoder import EncoderCard, build_encoder
from fseg_jax.encoders.load import load_encoder
from fseg_jax.encoders.trained import find_shipped
from fseg_jax.encoders.weights import weights_file
from fseg_jax.encoders.weights.convert import convert_to_network


class Peer(NamedTuple):
    """An architecture of ours that timm has too.

    Attributes:
        row: name in our catalog.
        name: name in timm.
        arguments: of timm's constructor.
        side: pixels of an image's side.
        batch: images of a call.
    """

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
TARGET = {"cpu": 1.0, "gpu": 1.15}  # times as fast as the best peer
GPU_BATCHES = (64, 256)  # images of a call on a GPU
MAX_ERROR = 3e-2  # relative error of bfloat16 maps


def compare(title: str, peer: Peer, repeats: int, compiled: bool) -> dict[str, Any]:
    """Time one architecture at our two precisions and at torch's settings.

    Raises:
        SystemExit: the maps differ.
    """
    torch: Any = importlib.import_module("torch")
    references: Any = importlib.import_module("weights_convert.references")
    timm = references.import_timm()
    torch.set_num_threads(count_cores())
    arguments = dict(peer.arguments)
    if "SwiGLU" in title:
        layers: Any = importlib.import_module("timm.layers")
        arguments |= {"mlp_layer": layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    module = references.randomise(timm.create_model(peer.name, **arguments), seed=0)
    entry = CATALOG[peer.row]
    state = references.get_published(module)
    x = np.random.default_rng(0).standard_normal((peer.batch, peer.side, peer.side, 3), np.float32)
    sides: dict[str, Callable[[], Any]] = {}
    maps: dict[str, np.ndarray] = {}
    images = jnp.asarray(x)
    for dtype in ("float32", "bfloat16"):
        network = convert_to_network(state, entry.config, label=peer.row, dtype=jnp.dtype(dtype))
        graphdef, weights = nnx.split(network)

        @jax.jit
        def compute_map(weights: Any, x: jax.Array, graphdef: Any = graphdef) -> jax.Array:
            features: jax.Array = nnx.merge(graphdef, weights).grid(x, entry.layer)
            return features

        name = f"{OURS} {dtype}"
        sides[name] = partial(compute_map, weights, images)
        maps[name] = np.asarray(sides[name]())
    costs = compute_map.lower(weights, images).cost_analysis()
    operations = float(costs.get("flops", 0.0)) if costs else 0.0
    is_convolutional = peer.row.startswith("resnet")
    if is_convolutional:  # the layers after the map are left out
        module = torch.nn.Sequential(
            module.conv1, module.bn1, module.act1, module.maxpool, module.layer1, module.layer2, module.layer3
        )
        module = module.to(memory_format=torch.channels_last)
    else:
        assert entry.layer == f"blocks.{len(module.blocks) - 1}"
        module.norm = torch.nn.Identity()
        module.forward = module.forward_features
    device = choose_torch_device(torch)
    module = module.to(device)
    pixels = torch.from_numpy(x).to(device).permute(0, 3, 1, 2).contiguous()
    if is_convolutional:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    sides |= prepare_torch_sides(torch, module, pixels, compiled)
    if is_convolutional:  # XLA does not count the operations of oneDNN's convolutions
        operations = 2.0 * peer.batch * count_multiplications(torch, module, peer.side)
    with torch.inference_mode():
        output = module(pixels).float().cpu()
    if is_convolutional:
        reference = output.permute(0, 2, 3, 1).numpy()
    else:
        size = peer.side // entry.stride
        reference = output[:, entry.prefix :].reshape(peer.batch, size, size, -1).numpy()
    error = float(np.linalg.norm(maps[f"{OURS} bfloat16"] - reference) / np.linalg.norm(reference))
    if not error < MAX_ERROR:
        raise SystemExit(f"{title}: not the same map: {error:.3g}")
    timings = time_interleaved(sides, repeats)
    backend = "gpu" if jax.default_backend() == "gpu" else "cpu"
    return report_row(
        f"{title}, {peer.side} px, batch {peer.batch}",
        "images/s",
        peer.batch,
        timings,
        target=TARGET[backend],
        limit=measure_matrix_rate("bfloat16") * peer.batch / operations if operations else None,
        limited_by="products in bfloat16",
        relative_error=error,
    )


def compare_he_small(repeats: int, compiled: bool, side: int = 224, batch: int = 8) -> list[dict[str, Any]]:
    """Time he-small's trunk, and all of he-small, beside the same networks in torch.

    Raises:
        SystemExit: the stain features differ.
    """
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(count_cores())
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    images = jnp.asarray(pixels)
    card = load_encoder("he-small").card
    device = choose_torch_device(torch)
    shift, scale = (torch.tensor(each, device=device).reshape(1, 3, 1, 1) for each in (card.mean, card.std))
    trunk = build_trunk(torch).eval().to(device, memory_format=torch.channels_last)
    encode_stains = build_stains(torch, device)
    given = torch.from_numpy(pixels).to(device)

    def run_trunk(x: Any) -> Any:
        normal = ((x.permute(0, 3, 1, 2).float() / 255 - shift) / scale).to(memory_format=torch.channels_last)
        return trunk(normal)

    def run_whole(x: Any) -> Any:
        stains = encode_stains(x.permute(0, 3, 1, 2).float().contiguous() / 255)
        return torch.cat([torch.relu(run_trunk(x)).float(), stains], dim=1)

    stains = np.asarray(classical()(images)).transpose(0, 3, 1, 2)
    reference = encode_stains(given.permute(0, 3, 1, 2).float().contiguous() / 255).cpu()
    if not np.allclose(stains, reference.numpy(), atol=1e-4):
        raise SystemExit(f"not the same stains: {np.abs(stains - reference.numpy()).max():.3g}")
    rows = []
    for title, load, run in (
        ("he-small's trunk", load_trunk, run_trunk),
        ("he-small", load_encoder, run_whole),
    ):
        sides: dict[str, Callable[[], Any]] = {}
        for dtype in ("float32", "bfloat16"):
            sides[f"{OURS} {dtype}"] = partial(load("he-small", dtype=dtype), images)
        sides |= prepare_torch_sides(torch, run, given, compiled)
        rows.append(
            report_row(
                f"{title}, {side} px, batch {batch}",
                "images/s",
                batch,
                time_interleaved(sides, repeats),
                target=TARGET["gpu" if jax.default_backend() == "gpu" else "cpu"],
                limit=measure_matrix_rate("bfloat16") / (2 * count_multiplications(torch, trunk, side)),
                limited_by="the trunk's products in bfloat16",
            )
        )
    return rows


def load_trunk(name: str, *, dtype: str) -> Callable[[jax.Array], jax.Array]:
    """Load the trunk of an encoder that is shipped with fseg_jax."""
    loaded = weights_file.load(find_shipped(name), dtype=jnp.dtype(dtype))
    card = EncoderCard.from_json(json.loads(loaded.metadata["card"]))
    return build_encoder(loaded.network, card)


def prepare_torch_sides(
    torch: Any, run: Callable[..., Any], x: Any, compiled: bool
) -> dict[str, Callable[[], Any]]:
    """Prepare calls of a torch function at each setting that this machine can run."""
    sides: dict[str, Callable[[], Any]] = {}
    on_gpu = x.device.type == "cuda"
    for dtype in ("float32", "bfloat16"):
        half = dtype == "bfloat16"
        # A GPU is given weights of bfloat16; a function that holds a network has none of its own.
        cast = half and on_gpu and isinstance(run, torch.nn.Module)
        network: Any = run
        network = copy.deepcopy(network).to(torch.bfloat16) if cast else network
        images = x.to(torch.bfloat16) if cast else x
        for kind in ("eager", "compiled") if compiled else ("eager",):
            mode = "max-autotune" if on_gpu else "default"
            function = torch.compile(network, mode=mode) if kind == "compiled" else network

            def call(
                function: Any = function, images: Any = images, autocast: bool = half and not cast
            ) -> Any:
                with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
                    result = function(images)
                if on_gpu:
                    torch.cuda.synchronize()
                return result

            try:
                call()
            except Exception as failure:  # torch.compile needs a C++ compiler
                print(f"torch {kind} {dtype}: {str(failure).splitlines()[0]}", flush=True)
                continue
            sides[f"torch {kind} {dtype}"] = call
    return sides


def choose_torch_device(torch: Any) -> str:
    """Choose the device of torch's side: a GPU where JAX has one too."""
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def count_multiplications(torch: Any, net: Any, side: int) -> int:
    """Count the multiplications of a network's convolutions for one image."""
    counts: list[int] = []

    def count(layer: Any, _: Any, output: Any) -> None:
        counts.append(output[0].numel() * layer.weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.inference_mode():
        net(torch.zeros(1, 3, side, side, device=next(net.parameters()).device))
    for hook in hooks:
        hook.remove()
    return sum(counts)


def build_stains(torch: Any, device: str) -> Callable[[Any], Any]:
    """Build ``classical.encode_stains`` in torch, for images (B, 3, H, W) in [0, 1]."""
    pool, pad = torch.nn.functional.avg_pool2d, torch.nn.functional.pad
    unmixing, maximum = (torch.tensor(each, device=device) for each in (UNMIXING, MAX_DENSITY))
    maximum = maximum.reshape(1, 2, 1, 1)

    def compute_edges(d: Any) -> Any:
        p = pad(d, (1, 1, 1, 1), mode="replicate")
        dy, dx = (p[:, :, 2:, 1:-1] - p[:, :, :-2, 1:-1]) / 2, (p[:, :, 1:-1, 2:] - p[:, :, 1:-1, :-2]) / 2
        return torch.sqrt(dy * dy + dx * dx + 1e-8)

    def encode(x: Any) -> Any:
        density = torch.einsum("bchw,cs->bshw", -torch.log10(x.clamp(min=1 / 255)), unmixing).relu()
        position = (density / maximum).clamp(max=1) * (BINS - 1)
        histograms = [pool((1 - (position - center).abs()).relu(), STRIDE) for center in range(BINS)]
        fine, coarse = (
            pool(compute_edges(density), STRIDE),
            pool(compute_edges(pool(density, 4)), STRIDE // 4),
        )
        stains = torch.stack(histograms, 2).flatten(1, 2)
        out = pad(torch.cat([stains, 4 * fine, 4 * coarse], 1), (1, 1, 1, 1), mode="replicate")
        out = 0.25 * out[:, :, :-2] + 0.5 * out[:, :, 1:-1] + 0.25 * out[:, :, 2:]
        return 0.25 * out[..., :-2] + 0.5 * out[..., 1:-1] + 0.25 * out[..., 2:]

    return encode


def build_trunk(torch: Any) -> Any:
    """Build he-small's trunk in torch with its norms folded, for its speed alone: weights are random."""
    from fseg_jax.pretraining.simclr import TRUNK

    assert TRUNK.patches and TRUNK.block == "basic"
    nn: Any = torch.nn
    base: type = nn.Module  # a name of its own: mypy runs without torch

    class Block(base):
        """A basic residual block."""

        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(before, after, 3, stride, 1)
            self.second = nn.Conv2d(after, after, 3, 1, 1)
            keeps_shape = stride == 1 and before == after
            self.shortcut = nn.Identity() if keeps_shape else nn.Conv2d(before, after, 1, stride)

        def forward(self, x: Any) -> Any:
            """Compute the output."""
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
    """Measure the architectures whose titles contain NAMES, or all."""
    if is_missing("torch") or is_missing("timm"):
        return
    rows: list[dict[str, Any]] = []
    batches = GPU_BATCHES if jax.default_backend() == "gpu" else ()
    for title, peer in PEERS.items():
        if (names and not any(name in title for name in names)) or (tiny and title != "ViT-S/16"):
            continue
        for batch in (1,) if tiny else batches or (peer.batch,):
            repeats, compiled = 1 if tiny else REPEATS, not (tiny or no_compile)
            rows.append(compare(title, peer._replace(batch=batch), repeats, compiled))
            save_result("encoders", rows, tiny=tiny)  # after each architecture: the largest take minutes
    if tiny:
        rows += compare_he_small(1, False, side=64, batch=1)
    elif not names or "he-small" in names:
        for batch in batches or (8,):
            rows += compare_he_small(REPEATS, not no_compile, batch=batch)
    save_result("encoders", rows, tiny=tiny)


if __name__ == "__main__":
    main()
