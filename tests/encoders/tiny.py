"""Tiny encoders in the catalog, their weights as publishers name them, and checkpoints that are spoiled."""

import errno
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fseg_jax.encoders.catalog.row import IMAGENET, Row, vit_row
from fseg_jax.encoders.resnet.network import ResNetConfig
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.errors import InputError
from fseg_jax.files.downloads import find_cache_folder

VIT = ViTConfig(patch=8, dim=32, depth=2, heads=2, mlp_width=64, image_size=32, registers=1, layer_scale=True)
TINY = vit_row(
    "tiny",
    "A tiny ViT",
    VIT,
    "lab/tiny",
    "model.safetensors",
    licence="CC-BY-4.0",
    citation="Nobody, 2024",
    parameters=30_000,
    input_size=32,
    normalisation=IMAGENET,
)
GATED = replace(TINY, name="locked", repo="lab/locked", gated=True, page="https://example.org/locked")
CNN = Row(
    name="tiny-cnn",
    title="A tiny ResNet",
    config=ResNetConfig("basic", (1, 1, 1, 1), channels=(4, 8, 16, 32), stem_channels=4),
    repo="lab/tiny-cnn",
    files=("model.safetensors",),
    layer="layer3",
    stride=16,
    channels=16,
    licence="MIT",
    citation="Nobody, 2025",
    page="https://example.org/tiny-cnn",
    parameters=20_000,
    normalisation=IMAGENET,
)


Tensors = dict[str, np.ndarray]


def make_vit_tensors(config: ViTConfig, seed: int = 0, dtype: type = np.float32) -> Tensors:
    """A ViT as timm publishes it, with random values."""
    c, hidden = config.dim, config.mlp_width
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, c),
        "reg_token": (1, config.registers, c),
        "pos_embed": (1, config.positions[0] ** 2 + config.prefix, c),
        "patch_embed.proj.weight": (c, 3, config.patch, config.patch),
        "patch_embed.proj.bias": (c,),
        "norm.weight": (c,),
        "norm.bias": (c,),
    }
    for index in range(config.depth):
        block = {"norm1.weight": (c,), "norm1.bias": (c,), "norm2.weight": (c,), "norm2.bias": (c,)}
        block |= {"attn.qkv.weight": (3 * c, c), "attn.qkv.bias": (3 * c,)}
        block |= {"attn.proj.weight": (c, c), "attn.proj.bias": (c,), "ls1.gamma": (c,), "ls2.gamma": (c,)}
        block |= {"mlp.fc1.weight": (hidden, c), "mlp.fc1.bias": (hidden,)}
        block |= {"mlp.fc2.weight": (c, hidden), "mlp.fc2.bias": (c,)}
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    if not config.registers:
        del shapes["reg_token"]
    if not config.layer_scale:
        shapes = {name: shape for name, shape in shapes.items() if ".ls" not in name}
    return draw_tensors(shapes, seed, dtype)


def make_resnet_tensors(config: ResNetConfig) -> Tensors:
    """A ResNet of one basic block a stage as torchvision publishes it, with random values."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (config.stem_channels, 3, 7, 7)}
    width = config.stem_channels
    norms = {"bn1": width}
    for stage, channels in enumerate(config.channels, 1):
        at = f"layer{stage}.0"
        shapes |= {
            f"{at}.conv1.weight": (channels, width, 3, 3),
            f"{at}.conv2.weight": (channels, channels, 3, 3),
        }
        norms |= {f"{at}.bn1": channels, f"{at}.bn2": channels}
        if stage > 1:
            shapes[f"{at}.downsample.0.weight"] = (channels, width, 1, 1)
            norms[f"{at}.downsample.1"] = channels
        width = channels
    parts = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"{norm}.{part}": (size,) for norm, size in norms.items() for part in parts}
    tensors = draw_tensors(shapes)
    return {key: abs(value) + 0.5 if key.endswith("var") else value for key, value in tensors.items()}


def draw_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: type = np.float32) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape, np.float32) / np.sqrt(shape[-1] if len(shape) > 1 else 1)).astype(
            dtype
        )
        for name, shape in shapes.items()
    }


WIDE_VIT = replace(VIT, patch=16, dim=1024, depth=12, heads=16, mlp_width=4096, image_size=224)
WIDE = replace(TINY, name="wide", config=WIDE_VIT, layer="blocks.11", stride=16, channels=1024)


def list_cache_files() -> list[str]:
    """Everything in the cache, half-written files among it."""
    return sorted(path.name for path in (find_cache_folder() / "encoders").rglob("*") if path.is_file())


def refuse_call(*_: object, **__: object) -> None:
    raise AssertionError("this was not to be called")


def raise_disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def get_error_line(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


class Malice:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["FSEG_TEST_MALICE"],)


def spoil_checkpoint(kind: str, published: Path) -> Path:
    path = published.with_name(f"{kind}.safetensors")
    tensors, whole = load_file(published), published.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("<html>Sign in to see this page</html>\n" * 100)
    elif kind == "folder":
        path.mkdir()
    elif kind == "absent":
        pass
    elif kind == "pickle":
        path = path.with_suffix(".bin")
        path.write_bytes(pickle.dumps({"state_dict": Malice()}))
    else:
        if kind == "other":
            tensors = make_resnet_tensors(CNN.config)
        elif kind == "missing":
            del tensors["blocks.1.attn.qkv.bias"]
        elif kind == "extra":
            tensors["blocks.2.attn.qkv.bias"] = tensors["blocks.1.attn.qkv.bias"]
        elif kind == "shape":
            tensors["blocks.1.mlp.fc1.weight"] = np.zeros((65, 32), np.float32)
        save_file(tensors, path)
    return path


SPOILED = ("truncated", "empty", "text", "folder", "absent", "pickle", "other", "missing", "extra", "shape")
