"""Rules that turn a published checkpoint's tensors into a network's; a key missing or left over is an error.

A rule says how one of our tensors is made: ``{regex of our name: (templates of the source keys,
transform)}``. One of ours can be made of several of theirs (a batch norm folded into a kernel; q, k and v
joined). Tensors are made one at a time, so that conversion takes the memory of the largest tensor alone.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fseg_jax.errors import InputError

Transform = Callable[..., np.ndarray]
Rule = tuple[tuple[str, ...], Transform]
Rules = Mapping[str, Rule]


@dataclass(frozen=True)
class Layout:
    """The names that one kind of checkpoint has for an architecture's tensors.

    Attributes:
        name: The layout's name in messages.
        signature: A regex that some key matches in full; a checkpoint has the first listed layout that fits.
        rules: For each of our tensors, the source keys that it is made of, and how.
        ignored: Regexes of keys that the network has no use for.
        rename: Substitutions that are made on the source keys first (prefixes of wrappers; chunked blocks).
    """

    name: str
    signature: str
    rules: Rules
    ignored: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)

    def map_keys(self, state: Mapping[str, Any]) -> dict[str, str]:
        """Map each renamed key to the key in the checkpoint."""
        renamed: dict[str, str] = {}
        for key in state:
            new = key
            for pattern, replacement in self.rename.items():
                new = re.sub(pattern, replacement, new)
            if new in renamed:
                raise InputError(f"the checkpoint holds both {renamed[new]!r} and {key!r}: keep one of them")
            renamed[new] = key
        return renamed


def convert_tensors(
    state: Mapping[str, Any],
    layouts: Sequence[Layout],
    targets: Mapping[str, Any],
    *,
    label: str,
) -> Iterator[tuple[str, np.ndarray]]:
    """Make a network's tensors from a checkpoint's, one at a time.

    Keys are checked before the first tensor is read.

    Args:
        state: Arrays by the publisher's key; they may be read lazily.
        layouts: The layouts that the checkpoint may have.
        targets: Shape and dtype of each of the network's tensors by name.
        label: The name of the checkpoint and the network in messages.

    Raises:
        InputError: The checkpoint has no known layout, lacks a key, holds a key that no rule uses and the
            layout does not ignore, or has a tensor of another shape.
    """
    layout, keys = _recognise(state, layouts, label)
    plan: dict[str, tuple[list[str], Transform]] = {}
    missing: list[str] = []
    used: set[str] = set()
    rules = [(re.compile(pattern), *rule) for pattern, rule in layout.rules.items()]
    for target in targets:
        sources, transform = _find_rule(rules, target)
        plan[target] = ([keys[key] for key in sources if key in keys], transform)
        missing += [key for key in sources if key not in keys]
        used.update(sources)
    unused = [key for key in keys if key not in used and not _matches_any(key, layout.ignored)]
    if missing or unused:
        lacks = f"lacks {_abbreviate(missing)}" if missing else ""
        extra = f"holds {_abbreviate(unused)} that the network has no place for" if unused else ""
        raise InputError(
            f"{label}: read as {layout.name}, the checkpoint {' and '.join(filter(None, (lacks, extra)))}: "
            "give the checkpoint of this very encoder"
        )

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for target, (sources, transform) in plan.items():
            values = [state[key] for key in sources]
            yield target, _make_tensor(target, values, transform, targets[target], sources, label)

    return tensors()


def _recognise(
    state: Mapping[str, Any], layouts: Sequence[Layout], label: str
) -> tuple[Layout, dict[str, str]]:
    for layout in layouts:
        keys = layout.map_keys(state)
        if any(re.fullmatch(layout.signature, key) for key in keys):
            return layout, keys
    raise InputError(
        f"{label}: the keys ({_abbreviate(list(state))}) are of none of the layouts known for this network "
        f"({', '.join(layout.name for layout in layouts)}): give the checkpoint of this very encoder"
    )


def _find_rule(rules: Sequence[tuple[re.Pattern[str], tuple[str, ...], Transform]], target: str) -> Rule:
    for pattern, sources, transform in rules:
        if match := pattern.fullmatch(target):
            return tuple(match.expand(source) for source in sources), transform
    raise LookupError(f"no rule for {target}")


def _make_tensor(
    target: str,
    values: list[Any],
    transform: Transform,
    place: Any,
    sources: list[str],
    label: str,
) -> np.ndarray:
    shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in zip(sources, values, strict=True))
    mismatch = InputError(
        f"{label}: {target} is {tuple(place.shape)}, and {shapes} does not fit it: "
        "give the checkpoint of this very encoder"
    )
    try:
        tensor = transform(*values)
    except (ValueError, IndexError) as error:
        raise mismatch from error
    if tensor.shape != tuple(place.shape):
        raise mismatch
    return np.ascontiguousarray(tensor, dtype=place.dtype)


def _matches_any(key: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def _abbreviate(keys: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more


# The transforms that rules use. Published kernels are (out, in, …), ours (…, in, out).


def identity(value: np.ndarray) -> np.ndarray:
    """Return the tensor as it is."""
    return value


def to_linear(weight: np.ndarray) -> np.ndarray:
    """Transpose a linear kernel: (out, in) → (in, out)."""
    (_, _) = weight.shape
    return weight.T


def join_linear(*weights: np.ndarray) -> np.ndarray:
    """Join linear kernels, (out, in) each, to one (in, sum of outs), or biases to one."""
    return np.concatenate([weight.T for weight in weights], axis=-1)


def to_conv(weight: np.ndarray) -> np.ndarray:
    """Transpose a convolution's kernel: (out, in, h, w) → (h, w, in, out)."""
    return weight.transpose(2, 3, 1, 0)


def to_pointwise(weight: np.ndarray) -> np.ndarray:
    """Turn a 1×1 convolution's kernel into a linear one: (out, in, 1, 1) or (out, in) → (in, out)."""
    return weight.reshape(weight.shape[:2]).T


def fold_kernel(eps: float) -> Transform:
    """Make the transform that folds a batch norm into the kernel of the convolution before it.

    The norm's scale multiplies each output of the kernel.
    """

    def fold(weight: np.ndarray, gamma: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return to_conv(weight.astype(np.float32)) * _scale(gamma, variance, eps).astype(np.float32)

    return fold


def fold_bias(eps: float) -> Transform:
    """Make the transform that folds a batch norm into the bias of the convolution before it."""

    def fold(gamma: np.ndarray, variance: np.ndarray, beta: np.ndarray, mean: np.ndarray) -> np.ndarray:
        bias: np.ndarray = beta.astype(np.float64) - mean.astype(np.float64) * _scale(gamma, variance, eps)
        return bias

    return fold


def _scale(gamma: np.ndarray, variance: np.ndarray, eps: float) -> np.ndarray:
    scale: np.ndarray = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + eps)
    return scale
