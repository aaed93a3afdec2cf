"""Compare every encoder of the catalog, at its real size, with the published network.

    python -m benchmarks.encoder_parity [NAME …]

For each architecture, the publisher's network (from timm or transformers, with the publisher's arguments)
gets random weights, and the converter makes our network of them. For one image, the relative error ‖ours −
theirs‖ / ‖theirs‖ of the features that F-SEG reads and of the embedding is measured in float32 and bfloat16,
and the parameters are counted. Each architecture runs in a process of its own, which frees its memory.
Results are added to ``results/encoder_parity.json`` one by one; an architecture with a result is not run
again (delete its entry to repeat it). Needs torch, timm and transformers, and 12 GB of memory for the
largest.
"""

import dataclasses
import functools
import importlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fseg_jax.encoders.architectures import count_parameters
from fseg_jax.encoders.catalog.names import find_row
from fseg_jax.encoders.catalog.published import CATALOG
from fseg_jax.encoders.catalog.row import Row
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.encoders.weights.convert import convert_to_network

RESULTS = Path(__file__).parent / "results" / "encoder_parity.json"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A published network.

    Attributes:
        source: the library that builds it.
        name: in that library.
        arguments: of that library's constructor.
        rows: names of the encoders in our catalog.
    """

    source: str
    name: str
    arguments: dict[str, Any]
    rows: tuple[str, ...]


def _timm(name: str, *rows: str, **arguments: Any) -> Architecture:
    return Architecture("timm", name, arguments, rows)


def _transformers(name: str, *rows: str, **arguments: Any) -> Architecture:
    return Architecture("transformers", name, arguments, rows)


_VIT = {"num_classes": 0, "img_size": 224, "dynamic_img_size": True}
_DINOV3 = {"num_classes": 0, "img_size": 256, "dynamic_img_size": True, "global_pool": "token"}
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_HF_SWIGLU = {"use_swiglu_ffn": True, "image_size": 224, "patch_size": 14}

_LUNIT = ("lunit-resnet50", "lunit-resnet50-mocov2", "lunit-resnet50-swav")
_TUNED = ("h-optimus-1", "mettle", "openmidnight", "openpath")

# Arguments from the publishers' instructions, not from the catalog, which they check.
ARCHITECTURES = (
    _timm("resnet18", "resnet18", "resnet18-a1", "resnet18-ciga", num_classes=0),
    _timm(
        "resnet50",
        "resnet50",
        "resnet50-tv2",
        "resnet50-a1",
        "lunit-resnet50",
        "lunit-resnet50-mocov2",
        "lunit-resnet50-swav",
        "retccl",
        num_classes=0,
    ),
    _timm("efficientnet_b0", "efficientnet-b0"),
    _timm("efficientnet_b1", "efficientnet-b1"),
    _timm("tf_efficientnet_lite0", "efficientnet-lite0"),
    _timm("tf_efficientnet_lite1", "efficientnet-lite1"),
    _timm("tf_efficientnet_lite2", "efficientnet-lite2"),
    _timm("vit_small_patch16_224", "kaiko-s16", "lunit-s16", "sp22m", "hipt", **_VIT),
    _timm("vit_small_patch8_224", "kaiko-s8", "lunit-s8", **_VIT),
    _timm("vit_base_patch16_224", "kaiko-b16", **_VIT),
    _timm("vit_base_patch16_224", "pathoduet", reg_tokens=1, **_VIT),
    _timm("vit_base_patch8_224", "kaiko-b8", **_VIT),
    _timm("vit_large_patch14_reg4_dinov2", "kaiko-l14", **_VIT),
    _timm("vit_large_patch16_224", "uni", "mstar", "pathorchestra", "keep", init_values=1e-5, **_VIT),
    _timm(
        "vit_giant_patch14_224",
        "uni2-h",
        depth=24,
        num_heads=24,
        init_values=1e-5,
        embed_dim=1536,
        mlp_ratio=2.66667 * 2,
        no_embed_class=True,
        reg_tokens=8,
        **_SWIGLU,
        **_VIT,
    ),
    _timm(
        "vit_giant_patch14_dinov2",
        "prov-gigapath",
        patch_size=16,
        embed_dim=1536,
        depth=40,
        num_heads=24,
        mlp_ratio=5.33334,
        **_VIT,
    ),
    _timm("vit_huge_patch14_224", "virchow", init_values=1e-5, mlp_ratio=5.3375, **_SWIGLU, **_VIT),
    _timm(
        "vit_huge_patch14_224",
        "virchow2",
        init_values=1e-5,
        mlp_ratio=5.3375,
        reg_tokens=4,
        **_SWIGLU,
        **_VIT,
    ),
    _timm(
        "vit_giant_patch14_reg4_dinov2",
        "h-optimus-0",
        "h-optimus-1",
        "mettle",
        "openmidnight",
        "openpath",
        init_values=1e-5,
        **_VIT,
    ),
    _timm("vit_base_patch14_reg4_dinov2", "h0-mini", mlp_ratio=2.66667 * 2, **_SWIGLU, **_VIT),
    _timm("vit_large_patch14_dinov2", "gpfm", init_values=1e-5, **_VIT),
    Architecture(
        "timm with CONCH's pooling", "vit_large_patch16_224", {"init_values": 1.0, **_VIT}, ("conch-v1.5",)
    ),
    _timm(
        "vit_small_patch16_224", "gigapath-flash", init_values=1e-5, mlp_ratio=2048 / 384, **_SWIGLU, **_VIT
    ),
    _timm("vit_large_patch16_224", "crown", init_values=1.0, mlp_ratio=5472 / 1024, **_SWIGLU, **_VIT),
    Architecture(
        "timm with CONCH v1's pooling", "vit_base_patch16_224", {**_VIT, "img_size": 448}, ("conch-v1",)
    ),
    Architecture(
        "re-read code",
        "PathFM",
        {"dim": 1536, "depth": 40, "heads": 24, "patch": 16, "hidden": 4096},
        ("genbio-pathfm",),
    ),
    *(
        _timm(f"vit_{size}_patch16_dinov3", f"timm:vit_{size}_patch16_dinov3.lvd1689m", **_DINOV3)
        for size in ("small", "small_plus", "base", "large", "huge_plus")
    ),
    _timm("vit_base_patch16_dinov3_qkvb", "timm:vit_base_patch16_dinov3_qkvb.lvd1689m", **_DINOV3),
    Architecture("timm with CTransPath's stem", "swin_tiny_patch4_window7_224", {}, ("ctranspath",)),
    _transformers(
        "ViT",
        "phikon",
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        patch_size=16,
        image_size=224,
        layer_norm_eps=1e-12,
    ),
    _transformers(
        "Dinov2",
        "phikon-v2",
        "phaet",
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=16,
        image_size=224,
    ),
    _transformers(
        "Dinov2",
        "midnight-12k",
        "mascaret",
        hidden_size=1536,
        num_hidden_layers=40,
        num_attention_heads=24,
        **_HF_SWIGLU,
    ),
    _transformers(
        "Dinov2WithRegisters",
        "hibou-b",
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_register_tokens=4,
        **_HF_SWIGLU,
    ),
    _transformers(
        "Dinov2WithRegisters",
        "hibou-l",
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_register_tokens=4,
        **_HF_SWIGLU,
    ),
)


def build_published(architecture: Architecture) -> Any:
    """Build the publisher's network; its parameters are unset, or drawn by its library."""
    references: Any = importlib.import_module("weights_convert.references")
    timm = references.import_timm()
    torch: Any = importlib.import_module("torch")
    arguments = dict(architecture.arguments)
    if architecture.source == "re-read code":
        return _build_unset(torch, lambda: references.PathFM(**arguments))
    if architecture.source == "timm with CTransPath's stem":
        return references.build_ctranspath()
    if architecture.source == "transformers":
        hub: Any = importlib.import_module("transformers")
        config = getattr(hub, f"{architecture.name}Config")(**arguments)
        model = getattr(hub, f"{architecture.name}Model")
        model = functools.partial(model, add_pooling_layer=False) if architecture.name == "ViT" else model
        return _build_unset(torch, lambda: model(config))
    if "mlp_layer" in arguments:
        layers: Any = importlib.import_module("timm.layers")
        arguments |= {"mlp_layer": layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    if not architecture.name.startswith("vit"):
        return timm.create_model(architecture.name, **arguments)
    trunk = _build_unset(torch, lambda: timm.create_model(architecture.name, **arguments))
    if architecture.source == "timm with CONCH v1's pooling":
        return references.ConchV1Tower(trunk, 512, 8)
    return references.ConchTower(trunk, 768, 8) if "CONCH" in architecture.source else trunk


def _build_unset(torch: Any, build: Callable[[], Any]) -> Any:
    # ``randomise`` draws the parameters later: to draw a billion twice takes minutes.
    with torch.device("meta"):
        module = build()
    module = module.to_empty(device="cpu")
    for part in module.modules():  # what is no parameter is computed
        if hasattr(part, "init_non_persistent_buffers"):
            part.init_non_persistent_buffers()
    return module


def measure(architecture: Architecture) -> dict[str, Any]:
    """Measure the errors and count the parameters of one architecture."""
    references: Any = importlib.import_module("weights_convert.references")
    start = time.perf_counter()
    row = find_row(architecture.rows[0])
    module = references.randomise(build_published(architecture), seed=0)
    parameters = [
        parameter for name, parameter in module.named_parameters() if not name.endswith("mask_token")
    ]
    x = np.random.default_rng(0).standard_normal((1, row.input_size, row.input_size, 3), np.float32)
    reference = _observe(module, x, row)
    autocast = _observe(module, x, row, autocast=True)
    state = references.get_published(module)
    if row.name in ("ctranspath", "pathoduet"):
        state = getattr(references, f"rename_to_{row.name}")(state)
    result: dict[str, Any] = {
        "rows": architecture.rows,
        "reference": f"{architecture.source}: {architecture.name}",
        "image": row.input_size,
        "layer": row.layer,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "catalog": {name: find_row(name).parameters for name in architecture.rows},
    }
    for dtype in ("float32", "bfloat16"):
        outputs, result["ours"] = _run(row, state, x, dtype)
        result[dtype] = {
            name: _compute_relative_error(outputs[name], reference[name]) for name in ("map", "head")
        }
    # The error of torch's own bfloat16 is the yardstick for ours.
    result["torch bfloat16"] = {
        name: _compute_relative_error(autocast[name], reference[name]) for name in ("map", "head")
    }
    result["seconds"] = round(time.perf_counter() - start, 1)
    versions = ("jax", "flax", "torch", "timm", "transformers")
    result["versions"] = {name: importlib.import_module(name).__version__ for name in versions}
    result["device"] = f"{jax.devices()[0].device_kind}, {platform.machine()}"
    return result


def _observe(module: Any, x: np.ndarray, row: Row, *, autocast: bool = False) -> dict[str, np.ndarray]:
    """Run the publisher's network; return the map (b, h, w, c) that F-SEG reads and the embedding."""
    references: Any = importlib.import_module("weights_convert.references")
    outputs = references.observe(module, x, (row.layer,), autocast=autocast)
    output = outputs[row.layer]
    if output.ndim == 3:
        side = row.input_size // row.stride
        output = output[:, row.prefix :].reshape(-1, side, side, output.shape[-1])
        # Passes of one image lie side by side.
        output = output.transpose(1, 2, 0, 3).reshape(1, side, side, -1)
    return {"map": output, "head": outputs["head"]}


def _run(row: Row, state: Any, x: np.ndarray, dtype: str) -> tuple[dict[str, np.ndarray], int]:
    """Run our network; return its map and embedding, and the number of its parameters."""
    network = convert_to_network(state, row.config, label=row.name, dtype=jnp.dtype(dtype))
    if isinstance(row.config, ViTConfig):
        assert network.config == row.config  # type: ignore[attr-defined]
    count = count_parameters(network)
    graphdef, weights = nnx.split(network)
    del network

    @jax.jit
    def run(weights: Any, x: jax.Array) -> dict[str, jax.Array]:
        net = nnx.merge(graphdef, weights)
        # XLA computes the layers that both outputs share once.
        return {"map": net.grid(x, row.layer), "head": net(x)}

    return {name: np.asarray(value) for name, value in run(weights, jnp.asarray(x)).items()}, count


def _compute_relative_error(output: np.ndarray, reference: np.ndarray) -> float:
    assert output.shape == reference.shape, (output.shape, reference.shape)
    return float(np.linalg.norm(output.astype(np.float64) - reference) / np.linalg.norm(reference))


_PREAMBLE = """\
# Every encoder at its real size, against the publisher's own network

Random weights (LayerScale and norms drawn near 1, the ends of convolutional branches lighter, statistics and
biases drawn), one image, the relative error ‖ours − theirs‖ / ‖theirs‖ of the map that F-SEG reads and of the
embedding (or the logits). (torch's): the publisher's own network in torch's bfloat16, which is what may be
asked of ours. Parameters: the publisher's, and ours; a folded batch norm leaves one a channel less, Hibou's
class position one embedding; the biases of k that DINOv3 has not are zeros in ours. GenBio-PathFM's code
rounds q and k to bfloat16 in its float32 too: with its image changed by a ten-millionth, it strays from
itself as far (1.0e-04 and 1.2e-04). Made by `python -m benchmarks.encoder_parity`."""

_COLUMNS = (
    "encoders",
    "reference",
    "image",
    "layer",
    "map, float32",
    "map, bfloat16",
    "(torch's)",
    "head, float32",
    "head, bfloat16",
    "(torch's)",
    "parameters",
    "catalog's",
    "ours",
)


def format_page(results: dict[str, Any]) -> str:
    """Format the results as a page of Markdown."""
    lines = [
        *_PREAMBLE.splitlines(),
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for result in results.values():
        is_equal = all(count == result["parameters"] for count in result["catalog"].values())
        kinds = ("float32", "bfloat16", "torch bfloat16")
        errors = [f"{result[kind][name]:.1e}" for name in ("map", "head") for kind in kinds]
        cells = [
            ", ".join(result["rows"]),
            result["reference"],
            str(result["image"]),
            result["layer"],
            *errors,
            f"{result['parameters']:,}",
            "equal" if is_equal else "DIFFERS",
            f"{result['ours']:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    last = next(reversed(results.values()))
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    return "\n".join([*lines, "", f"{versions}; {last['device']}.", ""])


def _is_alike(row: Row, other: Row) -> bool:
    """Whether two rows have one network, but for how it resamples its positions to another grid."""
    configs = [
        dataclasses.replace(each.config, resampling="bicubic")
        if isinstance(each.config, ViTConfig)
        else each.config
        for each in (row, other)
    ]
    return configs[0] == configs[1]


def _save(results: dict[str, Any]) -> None:
    """Write the results as JSON and as a page, in the order of the architectures."""
    order = [architecture.rows[0] for architecture in ARCHITECTURES]
    results = {name: results[name] for name in order if name in results}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(format_page(results))


@click.command()
@click.argument("names", nargs=-1)
@click.option("--one", help="Measure this architecture in this process and print it as JSON.")
def main(names: tuple[str, ...], one: str | None) -> None:
    """Measure the architectures of the encoders NAME, or of all, that have no result yet."""
    by_row = {row: architecture for architecture in ARCHITECTURES for row in architecture.rows}
    assert by_row.keys() >= CATALOG.keys(), CATALOG.keys() - by_row.keys()
    if one:
        print(json.dumps(measure(by_row[one])))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, result in results.items():  # rows that came to an architecture since it was measured
        rows = by_row[name].rows
        assert all(_is_alike(find_row(row), find_row(name)) for row in rows), rows
        result |= {"rows": rows, "catalog": {row: find_row(row).parameters for row in rows}}
    if results:
        _save(results)
    for name in dict.fromkeys(by_row[name].rows[0] for name in names or by_row):
        if name in results:
            continue
        command = [sys.executable, "-m", "benchmarks.encoder_parity", "--one", name]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if run.returncode:
            print(f"{name}: failed", flush=True)
            continue
        results[name] = json.loads(run.stdout.splitlines()[-1])
        _save(results)
        print(f"{name}: {results[name]['float32']} {results[name]['bfloat16']}", flush=True)


if __name__ == "__main__":
    main()
