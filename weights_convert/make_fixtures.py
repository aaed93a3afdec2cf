"""Write ``tests/encoders/fixtures``: ``python -m weights_convert.make_fixtures tests/encoders/fixtures``.

A fixture is a small network of a publisher's design with random weights, for tests without torch. It holds
the weights (``weights/KEY``, under the published names), an image (``input``) and the output of every stage
(``stages/NAME``); its metadata has our configuration. ``text_KIND`` is a text tower, with its tokenizer
beside it, prompts, their ``tokens`` and the embeddings of ``texts`` and ``images``. Together, the fixtures
use every option of our networks and every layout of checkpoints.
"""

import argparse
import functools
import importlib
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fseg_jax.encoders.architectures import Config, config_to_json
from fseg_jax.encoders.efficientnet.network import EfficientNetConfig
from fseg_jax.encoders.resnet.network import ResNetConfig
from fseg_jax.encoders.swin.network import SwinConfig
from fseg_jax.encoders.text.network import TextConfig
from fseg_jax.encoders.vit.network import AttentionPoolConfig, ViTConfig
from fseg_jax.encoders.vit.rotary import RotaryConfig
from fseg_jax.files.tensor_writer import write_tensors
from weights_convert.references import (
    ConchTower,
    ConchV1Tower,
    PathFM,
    build_ctranspath,
    get_published,
    import_timm,
    observe,
    randomise,
    rename_to_ctranspath,
    rename_to_dinov2,
    rename_to_lukemelas,
    rename_to_pathoduet,
)
from weights_convert.text_references import build_text_tower, observe_text_tower

State = Mapping[str, np.ndarray]


class Fixture(NamedTuple):
    """A network to write as a fixture.

    Attributes:
        module: the network in torch.
        config: our configuration of it.
        size: rows and columns of the image, pixels.
        rename: from the module's keys to the publisher's.
    """

    module: nn.Module
    config: Config
    size: tuple[int, int]
    rename: Callable[[State], State]


_WIDTHS: dict[str, Any] = {"dim": 12, "depth": 2, "heads": 3, "mlp_width": 48}


def build_fixtures() -> dict[str, Fixture]:
    """Build every network, by the name of its fixture."""
    return {
        **_build_vits(),
        **_build_transformers_vits(),
        **_build_convolutional(),
        **_build_later_vits(),
    }


def _keep_names(state: State) -> State:
    return state


def _build_vits() -> dict[str, Fixture]:
    import_timm()
    timm = importlib.import_module("timm.models.vision_transformer")
    swiglu = {
        "mlp_layer": importlib.import_module("timm.layers").SwiGLUPacked,
        "act_layer": nn.SiLU,
        "mlp_ratio": 16 / 3,
    }
    gated: dict[str, Any] = {**_WIDTHS, "mlp_width": 64, "mlp": "swiglu", "layer_scale": True}
    registers: dict[str, Any] = {"reg_tokens": 4, "no_embed_class": True}
    config_registers: dict[str, Any] = {"registers": 4, "embed_prefix": False}

    def build_vit(**arguments: Any) -> nn.Module:
        return timm.VisionTransformer(
            embed_dim=12,
            depth=2,
            num_heads=3,
            num_classes=0,
            **{"init_values": 1e-5, "dynamic_img_size": True, **arguments},
        )

    def rename_to_teacher(state: State) -> State:
        heads = {"dino_head.mlp.0.weight": np.zeros((2, 2), np.float32)}
        return {**rename_to_dinov2(state, chunk=1, prefix="backbone."), **heads}

    return {
        "vit_plain_patch8": Fixture(
            build_vit(patch_size=8, img_size=32, init_values=None),
            ViTConfig(patch=8, image_size=32, **_WIDTHS),
            (32, 32),
            _keep_names,
        ),
        "vit_layer_scale_patch16_resampled": Fixture(
            build_vit(patch_size=16, img_size=64),
            ViTConfig(patch=16, image_size=64, layer_scale=True, **_WIDTHS),
            (48, 96),
            _keep_names,
        ),
        "vit_swiglu_registers_patch14": Fixture(
            build_vit(patch_size=14, img_size=56, **swiglu, **registers),
            ViTConfig(patch=14, image_size=56, **gated, **config_registers),
            (42, 70),
            _keep_names,
        ),
        "vit_swiglu_registers_embedded": Fixture(
            build_vit(patch_size=14, img_size=42, reg_tokens=4, **swiglu),
            ViTConfig(patch=14, image_size=42, registers=4, **gated),
            (56, 42),
            _keep_names,
        ),
        "vit_no_class_token": Fixture(
            build_vit(
                patch_size=8,
                img_size=32,
                class_token=False,
                global_pool="avg",
                fc_norm=False,
                qkv_bias=False,
            ),
            ViTConfig(patch=8, image_size=32, layer_scale=True, class_token=False, qkv_bias=False, **_WIDTHS),
            (32, 48),
            _keep_names,
        ),
        "vit_dinov2_teacher": Fixture(
            build_vit(patch_size=14, img_size=56),
            ViTConfig(patch=14, image_size=56, layer_scale=True, **_WIDTHS),
            (56, 56),
            rename_to_teacher,
        ),
        "vit_dinov2_registers": Fixture(
            build_vit(patch_size=14, img_size=56, **swiglu, **registers),
            ViTConfig(patch=14, image_size=56, **gated, **config_registers),
            (28, 56),
            functools.partial(rename_to_dinov2, chunk=2, prefix=""),
        ),
        "vit_conch": Fixture(
            ConchTower(build_vit(patch_size=16, img_size=48), dim=8, heads=2),
            ViTConfig(
                patch=16,
                image_size=48,
                layer_scale=True,
                resampling="bicubic_offset",
                pool=AttentionPoolConfig(8, 2),
                **_WIDTHS,
            ),
            (96, 80),
            _keep_names,
        ),
    }


def _build_transformers_vits() -> dict[str, Fixture]:
    hub: Any = importlib.import_module("transformers")
    widths = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    gated: dict[str, Any] = {**_WIDTHS, "mlp_width": 64, "mlp": "swiglu", "layer_scale": True}
    dinov2 = {**widths, "image_size": 56, "patch_size": 14}
    return {
        "vit_transformers_vit": Fixture(
            hub.ViTModel(
                hub.ViTConfig(
                    **widths, intermediate_size=48, image_size=64, patch_size=16, layer_norm_eps=1e-12
                ),
                add_pooling_layer=False,
            ),
            ViTConfig(patch=16, image_size=64, eps=1e-12, resampling="bicubic", **_WIDTHS),
            (48, 96),
            _keep_names,
        ),
        "vit_transformers_dinov2": Fixture(
            hub.Dinov2Model(hub.Dinov2Config(**dinov2)),
            ViTConfig(patch=14, image_size=56, layer_scale=True, resampling="bicubic", **_WIDTHS),
            (84, 70),
            _keep_names,
        ),
        "vit_transformers_dinov2_swiglu": Fixture(
            hub.Dinov2Model(hub.Dinov2Config(**dinov2, use_swiglu_ffn=True)),
            ViTConfig(patch=14, image_size=56, resampling="bicubic", **gated),
            (56, 56),
            _keep_names,
        ),
        "vit_transformers_dinov2_registers": Fixture(
            hub.Dinov2WithRegistersModel(
                hub.Dinov2WithRegistersConfig(**dinov2, use_swiglu_ffn=True, num_register_tokens=4)
            ),
            ViTConfig(patch=14, image_size=56, registers=4, embed_prefix=False, **gated),
            (42, 84),
            _keep_names,
        ),
    }


def _build_later_vits() -> dict[str, Fixture]:
    import_timm()
    timm = importlib.import_module("timm.models.vision_transformer")
    eva = importlib.import_module("timm.models.eva")
    shared: dict[str, Any] = {"layer_scale": True, "registers": 4, "rotary": RotaryConfig()}

    def build_dinov3(**arguments: Any) -> nn.Module:
        return eva.Eva(
            img_size=48,
            patch_size=16,
            num_classes=0,
            global_pool="token",
            embed_dim=16,
            depth=2,
            num_heads=2,
            init_values=1e-5,
            rope_type="dinov3",
            rope_temperature=100,
            rope_rotate_half=True,
            use_rot_pos_emb=True,
            use_abs_pos_emb=False,
            num_reg_tokens=4,
            use_fc_norm=False,
            dynamic_img_size=True,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-5),
            **arguments,
        )

    def rename_to_conch(state: State) -> State:
        others = {"text.token": np.zeros(2, np.float32), "visual.proj_contrast": np.zeros((8, 8), np.float32)}
        return {**{f"visual.{name}": value for name, value in state.items()}, **others}

    return {
        "vit_dinov3": Fixture(
            build_dinov3(qkv_bias=True),
            ViTConfig(patch=16, dim=16, depth=2, heads=2, mlp_width=64, eps=1e-5, **shared),
            (48, 80),
            _keep_names,
        ),
        "vit_dinov3_plus": Fixture(
            build_dinov3(qkv_bias=False, swiglu_mlp=True, swiglu_align_to=8),
            ViTConfig(
                patch=16,
                dim=16,
                depth=2,
                heads=2,
                mlp_width=128,
                mlp="swiglu",
                qkv_bias=False,
                eps=1e-5,
                **shared,
            ),
            (32, 48),
            _keep_names,
        ),
        "vit_pathfm": Fixture(
            PathFM(dim=16, depth=2, heads=2, patch=16, hidden=64),
            ViTConfig(
                patch=16,
                dim=16,
                depth=2,
                heads=2,
                mlp_width=128,
                mlp="swiglu",
                qkv_bias=False,
                apart=True,
                **{**shared, "rotary": RotaryConfig(rounded="bfloat16")},
            ),
            (48, 80),
            _keep_names,
        ),
        "vit_conch_v1": Fixture(
            ConchV1Tower(
                timm.VisionTransformer(
                    patch_size=16,
                    img_size=48,
                    embed_dim=12,
                    depth=2,
                    num_heads=3,
                    num_classes=0,
                    dynamic_img_size=True,
                ),
                dim=8,
                heads=2,
            ),
            ViTConfig(patch=16, image_size=48, pool=AttentionPoolConfig(8, 2, bias=True), **_WIDTHS),
            (32, 64),
            rename_to_conch,
        ),
        "vit_pathoduet": Fixture(
            timm.VisionTransformer(
                patch_size=16,
                img_size=48,
                embed_dim=12,
                depth=2,
                num_heads=3,
                num_classes=0,
                reg_tokens=1,
                dynamic_img_size=True,
            ),
            ViTConfig(patch=16, image_size=48, registers=1, **_WIDTHS),
            (48, 48),
            rename_to_pathoduet,
        ),
    }


def _build_convolutional() -> dict[str, Fixture]:
    import_timm()
    resnet = importlib.import_module("timm.models.resnet")
    channels = (8, 8, 16, 16)
    stages = ((1, 3, 1, 1, 8), (1, 5, 2, 6, 8), (1, 3, 2, 6, 8), (1, 3, 1, 6, 16))
    efficientnet: dict[str, Any] = {
        "depth": 1.1,
        "stem": 8,
        "stages": stages,
        "features": 16,
        "num_classes": 5,
    }
    swin: dict[str, Any] = {
        "embed_dim": 16,
        "depths": (2, 2),
        "num_heads": (1, 2),
        "window_size": 4,
        "img_size": 64,
    }
    swin_config: dict[str, Any] = {"dim": 16, "depths": (2, 2), "heads": (1, 2), "window": 4}

    def add_prefix(state: State) -> State:
        return {f"model.resnet.{name}": value for name, value in state.items()}

    def rename_with_masks(state: State) -> State:
        masks = {"layers.0.blocks.1.attn_mask": np.zeros((16, 16, 16), np.float32)}
        return {**rename_to_ctranspath(state), **masks}

    return {
        "resnet_basic_classifier": Fixture(
            resnet.ResNet(resnet.BasicBlock, (2, 1, 1, 1), channels=channels, num_classes=5),
            ResNetConfig("basic", (2, 1, 1, 1), channels, num_classes=5),
            (40, 48),
            _keep_names,
        ),
        "resnet_bottleneck": Fixture(
            resnet.ResNet(resnet.Bottleneck, (1, 2, 1, 1), channels=(4, 4, 8, 8), num_classes=0),
            ResNetConfig("bottleneck", (1, 2, 1, 1), (4, 4, 8, 8)),
            (48, 33),
            add_prefix,
        ),
        "efficientnet_symmetric": Fixture(
            _build_efficientnet(stages, "", 1e-5),
            EfficientNetConfig(**efficientnet),
            (47, 48),
            _keep_names,
        ),
        "efficientnet_same": Fixture(
            _build_efficientnet(stages, "same", 1e-3),
            EfficientNetConfig(**efficientnet, padding="same", bn_eps=1e-3),
            (47, 48),
            rename_to_lukemelas,
        ),
        "swin_timm": Fixture(build_ctranspath(**swin), SwinConfig(**swin_config), (64, 64), _keep_names),
        "swin_ctranspath_padded": Fixture(
            build_ctranspath(**{**swin, "img_size": (72, 48)}),
            SwinConfig(**swin_config),
            (72, 48),
            rename_with_masks,
        ),
        "efficientnet_lite": Fixture(
            _build_efficientnet_lite(stages),
            EfficientNetConfig(
                **efficientnet,
                width=1.5,
                padding="same",
                bn_eps=1e-3,
                activation="relu6",
                squeeze=False,
                scale_ends=False,
            ),
            (47, 48),
            _keep_names,
        ),
    }


def _build_efficientnet(stages: tuple[tuple[int, ...], ...], padding: str, eps: float) -> nn.Module:
    timm = importlib.import_module("timm.models.efficientnet")
    builder = importlib.import_module("timm.models._efficientnet_builder")
    rows = [[f"{'ir' if e > 1 else 'ds'}_r{r}_k{k}_s{s}_e{e}_c{c}_se0.25"] for r, k, s, e, c in stages]
    return timm.EfficientNet(
        builder.decode_arch_def(rows, 1.1),
        num_classes=5,
        num_features=16,
        stem_size=8,
        pad_type=padding,
        act_layer=nn.SiLU,
        norm_layer=functools.partial(nn.BatchNorm2d, eps=eps),
    )


def _build_efficientnet_lite(stages: tuple[tuple[int, ...], ...]) -> nn.Module:
    timm = importlib.import_module("timm.models.efficientnet")
    builder = importlib.import_module("timm.models._efficientnet_builder")
    rows = [[f"{'ir' if e > 1 else 'ds'}_r{r}_k{k}_s{s}_e{e}_c{c}"] for r, k, s, e, c in stages]
    return timm.EfficientNet(
        builder.decode_arch_def(rows, 1.1, fix_first_last=True),
        num_classes=5,
        num_features=16,
        stem_size=8,
        fix_stem=True,
        pad_type="same",
        act_layer=nn.ReLU6,
        norm_layer=functools.partial(nn.BatchNorm2d, eps=1e-3),
        round_chs_fn=functools.partial(builder.round_channels, multiplier=1.5),
    )


def write_torch_files(folder: Path) -> None:
    """Write ``torch_zip.pth`` and ``torch_before_1_6.pth``: a trainer's state in both formats of torch."""
    base = torch.arange(24.0).reshape(4, 6)
    parameter = nn.Parameter(base[0].clone())
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    state = OrderedDict(
        transposed=base.T[1:3],
        columns=base[:, 2:4],
        parameter=nn.Parameter(base.clone()),
        bfloat16=base.to(torch.bfloat16)[1:],
        half=base.half(),
        mask=base > 3,
        count=torch.tensor(3),
        empty=torch.zeros(0, 3),
    )
    saved = {
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "settings": argparse.Namespace(rate=np.float64(0.1), means=np.ones(3), names={"a"}),
        "callbacks": {OrderedDict: {"best": 1.0}},
        "epoch": 3,
    }
    for name, zipped in (("torch_zip", True), ("torch_before_1_6", False)):
        torch.save(saved, folder / f"{name}.pth", _use_new_zipfile_serialization=zipped)


_PROMPTS = ("Lymphoma.", "nephropathy of a TUMOUR, H&E", "an H&E image of lymphoid stroma " * 3)


def write_texts(folder: Path) -> None:
    """Write ``text_bert`` and ``text_coca``: a tokenizer, a tower, prompts, and what comes of them.

    transformers' tokenizers make tokens of the prompts, padded as KEEP's and CONCH's authors do.
    """
    hub: Any = importlib.import_module("transformers")
    specials = {"bert": ("[PAD]", "[CLS]", "[SEP]"), "coca": ("<pad>", "<start_of_text>", "<end_of_text>")}
    for seed, (kind, (padding, start, end)) in enumerate(specials.items()):
        path = folder / f"text_{kind}.tokenizer.json"
        tokenizer = _train_tokenizer(kind, (padding, start, end))
        tokenizer.save(str(path), pretty=False)
        config = TextConfig(
            kind=kind,  # type: ignore[arg-type]
            vocabulary=tokenizer.get_vocab_size(),
            positions=80,
            dim=12,
            depth=2,
            heads=3,
            mlp_width=24,
            channels=12,
            image_channels=10,
            image_width=8 if kind == "bert" else 0,
            eps=1e-12 if kind == "bert" else 1e-5,
        )
        theirs = hub.PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token=padding)
        encoded = theirs(list(_PROMPTS), padding="max_length", max_length=79, return_tensors="np")
        tokens = encoded["input_ids"].astype(np.int32)
        module = randomise(build_text_tower(config), seed)
        embedding = np.random.default_rng(seed).standard_normal((2, 10), np.float32)
        tensors = {f"weights/{key}": value for key, value in get_published(module).items()}
        tensors |= {"tokens": tokens, "embedding": embedding}
        tensors |= observe_text_tower(module, tokens, embedding)
        metadata = {"config": config_to_json(config), "prompts": json.dumps(_PROMPTS)}
        write_tensors(folder / f"text_{kind}.safetensors", tensors, metadata)


def _train_tokenizer(kind: str, specials: tuple[str, str, str]) -> Any:
    """Train a small tokenizer of the kind that BERT or CONCH has, which knows two words whole."""
    t: Any = importlib.import_module("tokenizers")
    start, end = specials[1:]
    template = t.processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 1), (end, 2)]
    )
    words = ["lymphoma nephropathy"] * 9 + ["an h&e image of a tumour stroma lymphoid."]
    if kind == "bert":
        tokenizer = t.Tokenizer(t.models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = t.normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
        trainer = t.trainers.WordPieceTrainer(
            vocab_size=120,
            special_tokens=[*specials, "[UNK]"],
            initial_alphabet=list("abcdefghijklmnopqrstuvwxyz&.,"),
        )
    else:
        tokenizer = t.Tokenizer(t.models.BPE())
        tokenizer.normalizer = t.normalizers.Sequence(
            [t.normalizers.NFD(), t.normalizers.StripAccents(), t.normalizers.Lowercase()]
        )
        tokenizer.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = t.trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=list(specials),
            initial_alphabet=t.pre_tokenizers.ByteLevel.alphabet(),
        )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = template
    return tokenizer


def main(folder: Path) -> None:
    """Write every fixture into a folder."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    write_torch_files(folder)
    write_texts(folder)
    for seed, (name, (module, config, size, rename)) in enumerate(build_fixtures().items()):
        randomise(module, seed)
        x = np.random.default_rng(seed).standard_normal((1, *size, 3), np.float32)
        tensors = {f"weights/{key}": value for key, value in rename(get_published(module)).items()}
        tensors |= {f"stages/{key}": value for key, value in observe(module, x).items()}
        tensors["input"] = x
        write_tensors(folder / f"{name}.safetensors", tensors, {"config": config_to_json(config)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
