"""The text towers of KEEP and CONCH in torch, with what brings images to their space, under published names.

KEEP's is transformers' BERT. CONCH's is written anew from what its authors' code does, with torch's own
attention. ``make_fixtures`` and ``benchmarks/text_parity.py`` compare ours with them.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fseg_jax.encoders.text.network import PADDING, TextConfig


class Keep(nn.Module):
    """KEEP without its vision tower."""

    def __init__(self, config: TextConfig):
        super().__init__()
        hub: Any = importlib.import_module("transformers")
        self.text = hub.BertModel(
            hub.BertConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.dim,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                intermediate_size=config.mlp_width,
                max_position_embeddings=config.positions,
            )
        )
        self.visual_head = nn.Sequential(
            nn.Linear(config.image_channels, config.image_width),
            nn.GELU(),
            nn.Linear(config.image_width, config.channels),
        )
        self.logit_scale = nn.Parameter(torch.empty([]))

    def embed_texts(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed texts."""
        return self.text(input_ids=tokens, attention_mask=(tokens != PADDING).long()).pooler_output

    def embed_images(self, embedding: torch.Tensor) -> torch.Tensor:
        """Bring the vision tower's embedding into the texts' space."""
        return self.visual_head(embedding)


class Conch(nn.Module):
    """CONCH's first version without its vision tower."""

    def __init__(self, config: TextConfig):
        super().__init__()
        dim, positions = config.dim, config.positions
        self.text = nn.ParameterDict(
            {
                "cls_emb": torch.empty(dim),
                "positional_embedding": torch.empty(positions, dim),
                "text_projection": torch.empty(dim, config.channels),
            }
        )
        self.text.token_embedding = nn.Embedding(config.vocabulary, dim)
        self.text.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList(ConchBlock(config) for _ in range(config.depth))}
        )
        self.text.ln_final = nn.LayerNorm(dim, eps=config.eps)
        self.visual = nn.ParameterDict({"proj_contrast": torch.empty(config.image_channels, config.channels)})
        self.logit_scale = nn.Parameter(torch.empty([]))

    def embed_texts(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed texts."""
        batch, n = tokens.shape
        text: Any = self.text
        last = text["cls_emb"].expand(batch, 1, -1)
        x = torch.cat([text.token_embedding(tokens), last], dim=1) + text["positional_embedding"]
        hidden = torch.ones(n + 1, n + 1).triu(1).bool().repeat(batch, 1, 1)
        hidden[:, n, 1:] = tokens == PADDING
        for block in text.transformer["resblocks"]:
            x = block(x, hidden)
        return text.ln_final(x[:, n]) @ text["text_projection"]

    def embed_images(self, embedding: torch.Tensor) -> torch.Tensor:
        """Bring the vision tower's embedding into the texts' space."""
        return embedding @ self.visual["proj_contrast"]


class ConchBlock(nn.Module):
    """A block of ``Conch``'s text tower."""

    def __init__(self, config: TextConfig):
        super().__init__()
        dim = config.dim
        self.ln_1, self.ln_2 = nn.LayerNorm(dim, eps=config.eps), nn.LayerNorm(dim, eps=config.eps)
        self.attn = nn.MultiheadAttention(dim, config.heads, batch_first=True)
        c_fc, c_proj = nn.Linear(dim, config.mlp_width), nn.Linear(config.mlp_width, dim)
        self.mlp = nn.ModuleDict({"c_fc": c_fc, "c_proj": c_proj})

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Compute the output; ``hidden`` (batch, queries, keys) are the keys that a query does not see."""
        y = self.ln_1(x)
        mask = hidden.repeat_interleave(self.attn.num_heads, 0)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


def build_text_tower(config: TextConfig) -> nn.Module:
    """Build the published tower of a configuration."""
    return Keep(config) if config.kind == "bert" else Conch(config)


def observe_text_tower(
    module: Any, tokens: np.ndarray, embedding: np.ndarray, *, autocast: bool = False
) -> Mapping[str, np.ndarray]:
    """Run a tower: the embeddings of texts and of images, each of length one."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        texts = module.embed_texts(torch.from_numpy(tokens).long())
        images = module.embed_images(torch.from_numpy(embedding))
    return {
        name: nn.functional.normalize(value.float(), dim=-1).numpy()
        for name, value in (("texts", texts), ("images", images))
    }
