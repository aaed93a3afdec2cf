"""The publishers' networks in torch, with random weights, and the outputs of their stages.

``make_fixtures`` and ``benchmarks/encoder_parity.py`` compare our networks with them. Needs torch, timm and
transformers.
"""

import importlib.util
import math
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fseg_jax.encoders.weights.checkpoint import Checkpoint, open_checkpoint


def import_timm() -> Any:
    """Import timm, with a stand-in for torchvision if that is not installed.

    timm imports torchvision, but the networks do not use it.
    """
    stand_ins = []
    if "timm" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for name in (
            "",
            ".transforms",
            ".transforms.functional",
            ".ops",
            ".ops.misc",
            ".models",
            ".datasets",
        ):
            module = _Anything(f"torchvision{name}")
            module.__path__ = []
            sys.modules[module.__name__] = module
            stand_ins.append(module.__name__)
            if parent := module.__name__.rpartition(".")[0]:
                setattr(sys.modules[parent], module.__name__.rpartition(".")[2], module)
        frozen = type("FrozenBatchNorm2d", (nn.Module,), {})
        sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = frozen  # type: ignore[attr-defined]
    timm = importlib.import_module("timm")
    # Remove the stand-ins: other packages test whether torchvision is installed.
    for name in stand_ins:
        del sys.modules[name]
    return timm


class _AnythingType(type):
    """The type of a class that has every attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnythingType(name, (), {})


class _Anything(types.ModuleType):
    """A module that has every attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnythingType(name, (), {})


class AttentionalPooler(nn.Module):
    """CoCa's attentional pooler with one query, under the names of CONCH's checkpoint."""

    def __init__(self, dim: int, context: int, heads: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, dim))
        self.heads = heads
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(context)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool the tokens to one."""
        batch = len(tokens)
        q = self.to_q(self.ln_q(self.query)).expand(batch, 1, -1)
        k, v = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        return self.to_out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))[:, 0]


class AttentionalPoolerOfV1(nn.Module):
    """The pooler of CONCH's first version, around torch's own attention."""

    def __init__(self, dim: int, context: int, heads: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, dim))
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(context)
        self.attn = nn.MultiheadAttention(dim, heads, kdim=context, vdim=context, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool the tokens to one."""
        context = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), 1, -1)
        return self.attn(query, context, context, need_weights=False)[0][:, 0]


class ConchV1Tower(nn.Module):
    """The vision tower of CONCH's first version around a timm ViT."""

    def __init__(self, trunk: Any, dim: int, heads: int):
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionalPoolerOfV1(dim, trunk.embed_dim, heads)
        self.ln_contrast = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the output."""
        return self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(x)))


class ConchTower(nn.Module):
    """CONCH v1.5's vision tower around a timm ViT.

    It resamples the position embedding at the scale (size + 0.1) / old size.
    """

    def __init__(self, trunk: Any, dim: int, heads: int):
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionalPooler(dim, trunk.embed_dim, heads)
        self.ln_contrast = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the output."""
        trunk: Any = self.trunk
        embedding, patch = trunk.pos_embed, trunk.patch_embed.patch_size[0]
        old_side = round((embedding.shape[1] - 1) ** 0.5)
        new_size = (x.shape[2] // patch, x.shape[3] // patch)
        grid = embedding[:, 1:].reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)
        if new_size != (old_side, old_side):
            scale = ((new_size[0] + 0.1) / old_side, (new_size[1] + 0.1) / old_side)
            grid = nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic")
        positions = torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
        tokens = trunk.patch_embed(x).flatten(1, 2)
        tokens = torch.cat([trunk.cls_token.expand(len(x), -1, -1), tokens], dim=1) + positions
        tokens = trunk.norm(trunk.blocks(trunk.norm_pre(tokens)))
        return self.ln_contrast(self.attn_pool_contrast(tokens))


class PathFM(nn.Module):
    """GenBio-PathFM under the names of its checkpoint: DINOv3 on one colour at a time.

    Angles, q and k are bfloat16 in its code, whatever the network is.
    """

    def __init__(
        self, dim: int = 1536, depth: int = 40, heads: int = 24, patch: int = 16, hidden: int = 4096
    ):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.storage_tokens = nn.Parameter(torch.empty(1, 4, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, dim, patch, stride=patch)})
        self.rope_embed = nn.Module()
        self.rope_embed.register_buffer("periods", torch.empty(dim // heads // 4, dtype=torch.bfloat16))
        self.blocks = nn.ModuleList(PathFMBlock(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the periods."""
        periods: Any = self.rope_embed.periods
        exponents = torch.arange(len(periods), dtype=torch.bfloat16, device=periods.device) * 2
        periods.copy_(100.0 ** (exponents / (2 * len(periods))))

    def observe(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the outputs of our stages and of the head, for images (b, 3, height, width)."""
        patches = self.patch_embed["proj"](x.flatten(0, 1)[:, None]).permute(0, 2, 3, 1)
        turn = self._compute_turn(*patches.shape[1:3])
        prefix = torch.cat([self.cls_token, self.storage_tokens], dim=1).expand(len(patches), -1, -1)
        tokens = torch.cat([prefix, patches.flatten(1, 2)], dim=1)
        outputs = {"patch_embed": patches, "embed": tokens}
        for index, block in enumerate(self.blocks):
            outputs[f"blocks.{index}"] = tokens = block(tokens, turn)
        outputs["norm"] = tokens = self.norm(tokens)
        return {**outputs, "head": tokens[:, 0].unflatten(0, (-1, 3)).flatten(1)}

    def _compute_turn(self, h: int, w: int) -> tuple[torch.Tensor, torch.Tensor]:
        sides = [(torch.arange(n, dtype=torch.bfloat16) + 0.5) / n for n in (h, w)]
        places = 2 * torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1) - 1
        periods: Any = self.rope_embed.periods
        angles = (2 * math.pi * places[..., None] / periods).flatten(1).tile(2)
        return angles.cos(), angles.sin()


class PathFMBlock(nn.Module):
    """A block of ``PathFM``."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        qkv, proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.attn = nn.ModuleDict({"qkv": qkv, "proj": proj})
        sides = {"w1": (dim, hidden), "w2": (dim, hidden), "w3": (hidden, dim)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*pair) for name, pair in sides.items()})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.empty(dim)}) for _ in range(2))

    def forward(self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Compute the output."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attn["qkv"](self.norm1(x)).chunk(3, dim=-1)
        )
        q, k = self._rotate(q, turn), self._rotate(k, turn)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.attn["proj"](attended.transpose(1, 2).flatten(2)) * self.ls1["gamma"]
        y = self.norm2(x)
        gated = nn.functional.silu(self.mlp["w1"](y)) * self.mlp["w2"](y)
        return x + self.mlp["w3"](gated) * self.ls2["gamma"]

    @staticmethod
    def _rotate(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        cos, sin = turn
        low = x.to(cos.dtype)
        prefix, patches = low[:, :, : -len(cos)], low[:, :, -len(cos) :]
        first, second = patches.chunk(2, dim=-1)
        turned = patches * cos + torch.cat([-second, first], dim=-1) * sin
        return torch.cat([prefix, turned], dim=2).to(x.dtype)


class ConvStem(nn.Module):
    """CTransPath's stem, under the names of its checkpoint."""

    def __init__(self, img_size: Any = 224, embed_dim: int = 96, norm_layer: Any = nn.LayerNorm, **_: Any):
        super().__init__()
        thin, thick = embed_dim // 8, embed_dim // 4
        self.proj = nn.Sequential(
            nn.Conv2d(3, thin, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(thin),
            nn.ReLU(),
            nn.Conv2d(thin, thick, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(thick),
            nn.ReLU(),
            nn.Conv2d(thick, embed_dim, 1),
        )
        self.norm = norm_layer(embed_dim)
        sides = img_size if isinstance(img_size, tuple) else (img_size, img_size)
        self.grid_size = (sides[0] // 4, sides[1] // 4)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the output."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


def build_ctranspath(**arguments: Any) -> nn.Module:
    """Build timm's Swin transformer with CTransPath's stem."""
    import_timm()
    swin = importlib.import_module("timm.models.swin_transformer")
    return swin.SwinTransformer(embed_layer=ConvStem, num_classes=0, **arguments)


_SCALES = ("running_var", "gamma", "gamma_1", "gamma_2", "lambda1")


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter and statistic of a module at random, and set the module to evaluate."""
    random = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        last = name.rpartition(".")[2]
        if not value.is_floating_point() or last == "periods":  # which are no parameters
            continue
        if name.endswith("bn3.weight"):
            # The output of a residual branch is smaller than its shortcut, as after training. A deep network
            # with branches as large as their shortcuts magnifies any rounding, torch's own too.
            value.uniform_(0.2, 0.4, generator=random)
        elif last in ("running_var", "gamma", "gamma_1", "gamma_2", "lambda1") or (
            last == "weight" and value.ndim == 1
        ):
            value.uniform_(0.7, 1.3, generator=random)
        elif last in ("bias", "in_proj_bias", "running_mean"):
            value.normal_(0, 0.2, generator=random)
        elif last == "weight" or last.endswith("proj_weight"):
            gain = 2.0 if value.ndim == 4 else 1.0
            value.normal_(0, (gain / value[0].numel()) ** 0.5, generator=random)
        else:
            value.normal_(0, 0.5, generator=random)
    return module.eval()


def find_stages(module: nn.Module) -> dict[str, nn.Module]:
    """Find, for each of our layers, the submodule with the same output."""
    m: Any = module
    if isinstance(module, ConchTower | ConchV1Tower):
        return find_stages(m.trunk)
    if hasattr(m, "maxpool"):
        return {"stem": m.maxpool, **{f"layer{n}": getattr(m, f"layer{n}") for n in range(1, 5)}}
    if hasattr(m, "conv_head"):
        blocks = [block for stage in m.blocks for block in stage]
        return {"stem": m.bn1, **_number("blocks", blocks), "top": m.bn2}
    if hasattr(m, "layernorm"):
        blocks = m.layers if hasattr(m, "layers") else m.encoder.layer
        ends = {"patch_embed": m.embeddings.patch_embeddings, "embed": m.embeddings}
        return {**ends, **_number("blocks", blocks), "norm": m.layernorm}
    if isinstance(m.patch_embed, ConvStem):
        return {"patch_embed": m.patch_embed, **_number("layers", m.layers), "norm": m.norm}
    ends = {"patch_embed": m.patch_embed, "embed": m.norm_pre}
    return {**ends, **_number("blocks", m.blocks), "norm": m.norm}


def _number(name: str, modules: Any) -> dict[str, nn.Module]:
    return {f"{name}.{index}": module for index, module in enumerate(modules)}


def observe(
    module: nn.Module, x: np.ndarray, stages: tuple[str, ...] | None = None, *, autocast: bool = False
) -> dict[str, np.ndarray]:
    """Run a module and return the outputs of its stages, channels last, and of the network (``head``).

    Args:
        module: the network.
        x: images (B, H, W, 3).
        stages: names of the stages to return; all by default.
        autocast: whether to run in torch's own bfloat16.
    """
    if isinstance(module, PathFM):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            observed = module.observe(torch.from_numpy(x).permute(0, 3, 1, 2))
        return {
            name: value.float().numpy()
            for name, value in observed.items()
            if stages is None or name in (*stages, "head")
        }
    outputs: dict[str, np.ndarray] = {}
    is_convolutional = hasattr(module, "maxpool") or hasattr(module, "conv_head")

    def make_hook(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if is_convolutional:
                value = value.permute(0, 2, 3, 1)
            elif name == "patch_embed" and value.ndim == 3:
                # Patches are square.
                h = round((value.shape[1] * x.shape[1] / x.shape[2]) ** 0.5)
                value = value.unflatten(1, (h, -1))
            outputs[name] = value.float().numpy().copy()

        return hook

    submodules = find_stages(module)
    hooks = [submodules[name].register_forward_hook(make_hook(name)) for name in stages or submodules]
    arguments = {"interpolate_pos_encoding": True} if type(module).__name__ == "ViTModel" else {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = module(torch.from_numpy(x).permute(0, 3, 1, 2), **arguments)
    for hook in hooks:
        hook.remove()
    output = getattr(output, "last_hidden_state", output)
    outputs["head"] = (output if output.ndim == 2 else output[:, 0]).float().numpy()
    return outputs


def get_published(module: nn.Module) -> Mapping[str, np.ndarray]:
    """Return a module's tensors under the names of the published file."""
    if hasattr(module, "save_pretrained"):
        return _save_by_transformers(module)
    return {name: tensor.float().numpy() for name, tensor in module.state_dict().items()}


def _save_by_transformers(module: Any) -> Checkpoint:
    # transformers renames tensors on saving: only the saved file has the published names.
    folder = tempfile.TemporaryDirectory()
    module.save_pretrained(folder.name, max_shard_size="100GB")
    checkpoint = open_checkpoint(Path(folder.name) / "model.safetensors")
    checkpoint.folder = folder  # type: ignore[attr-defined]
    return checkpoint


def rename_to_ctranspath(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename timm's tensors as in CTransPath's checkpoint, which halves the grid at the end of a stage."""
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if len(parts) > 2 and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        renamed[".".join(parts)] = value
    return renamed


def rename_to_pathoduet(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename timm's tensors as in PathoDuet's checkpoint, whose pretext token stands first."""
    renamed = dict(state)
    renamed["pretext_token"] = renamed.pop("reg_token")
    positions = renamed["pos_embed"]
    renamed["pos_embed"] = np.concatenate([positions[:, 1:2], positions[:, :1], positions[:, 2:]], axis=1)
    return {**renamed, "head.0.weight": np.zeros((4, positions.shape[-1]), np.float32)}


def rename_to_dinov2(state: Mapping[str, np.ndarray], *, chunk: int, prefix: str) -> dict[str, np.ndarray]:
    """Rename timm's tensors as in DINOv2's checkpoints.

    There a gated MLP has w12 and w3, blocks are in chunks, and a network with registers has a position
    embedding for its class token.
    """
    renamed = {}
    is_gated = "blocks.0.mlp.fc1.weight" in state and (
        state["blocks.0.mlp.fc1.weight"].shape[0] != state["blocks.0.mlp.fc2.weight"].shape[1]
    )
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) // chunk))
            if is_gated and parts[3] == "mlp":
                parts[4] = {"fc1": "w12", "fc2": "w3"}[parts[4]]
        renamed[".".join(parts)] = value
    if "reg_token" in renamed:
        renamed["register_tokens"] = renamed.pop("reg_token")
        position = np.full_like(renamed["cls_token"], 0.125)
        renamed["cls_token"] = renamed["cls_token"] - position
        renamed["pos_embed"] = np.concatenate([position, renamed["pos_embed"]], axis=1)
    renamed["mask_token"] = np.zeros((1, renamed["cls_token"].shape[-1]), np.float32)
    return {prefix + name: value for name, value in renamed.items()}


def rename_to_lukemelas(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename timm's tensors as in lukemelas's EfficientNet."""
    ends = {
        "conv_stem": "_conv_stem",
        "bn1": "_bn0",
        "conv_head": "_conv_head",
        "bn2": "_bn1",
        "classifier": "_fc",
    }
    inside = {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
        "se.conv_reduce": "_se_reduce",
        "se.conv_expand": "_se_expand",
    }
    plain = {**inside, "conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    renamed: dict[str, np.ndarray] = {}
    order: dict[tuple[str, str], int] = {}
    for name, value in state.items():
        part, _, leaf = name.rpartition(".")
        if not part.startswith("blocks."):
            renamed[f"{ends[part]}.{leaf}"] = value
            continue
        _, stage, position, part = part.split(".", 3)
        index = order.setdefault((stage, position), len(order))
        names = inside if f"blocks.{stage}.{position}.conv_pwl.weight" in state else plain
        renamed[f"_blocks.{index}.{names[part]}.{leaf}"] = value
    return renamed
