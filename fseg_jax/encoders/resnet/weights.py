"""The names of a ResNet's tensors in checkpoints: timm's and torchvision's, which agree, with any prefix."""

from fseg_jax.encoders.resnet.network import ResNetConfig
from fseg_jax.encoders.weight_rules import Layout, Rules, fold_bias, fold_kernel, identity, to_linear

BATCH_NORM_EPS = 1e-5

_KERNEL = fold_kernel(BATCH_NORM_EPS)
_BIAS = fold_bias(BATCH_NORM_EPS)

_RULES: Rules = {
    r"((?:layer\d\.\d+\.)?)conv(\d)\.kernel": (
        (r"\1conv\2.weight", r"\1bn\2.weight", r"\1bn\2.running_var"),
        _KERNEL,
    ),
    r"((?:layer\d\.\d+\.)?)conv(\d)\.bias": (
        (r"\1bn\2.weight", r"\1bn\2.running_var", r"\1bn\2.bias", r"\1bn\2.running_mean"),
        _BIAS,
    ),
    r"(layer\d\.\d+\.downsample)\.kernel": (
        (r"\1.0.weight", r"\1.1.weight", r"\1.1.running_var"),
        _KERNEL,
    ),
    r"(layer\d\.\d+\.downsample)\.bias": (
        (r"\1.1.weight", r"\1.1.running_var", r"\1.1.bias", r"\1.1.running_mean"),
        _BIAS,
    ),
    r"fc\.kernel": ((r"fc.weight",), to_linear),
    r"fc\.bias": ((r"fc.bias",), identity),
}

_COUNTERS = r".*\.num_batches_tracked"
# Prefixes of trainers that wrap the network.
_WRAPPERS = {r"^(?:module\.)?(?:model\.)?(?:backbone\.|resnet\.)?": ""}


def list_layouts(config: ResNetConfig) -> tuple[Layout, ...]:
    """List the layouts that are known for a configuration.

    A classifier, or the projection that self-supervision puts in its place, is ignored where the network has
    none.
    """
    unused = () if config.num_classes else (r"(?:fc|l|head|projector|projection_head)\d*\..*",)
    name = "timm's or torchvision's ResNet"
    return (Layout(name, r"layer1\.0\.conv1\.weight", _RULES, (_COUNTERS, *unused), _WRAPPERS),)
