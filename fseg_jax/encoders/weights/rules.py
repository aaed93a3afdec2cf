"""A published checkpoint's tensors as a network's, by rules that are data: a bijection, or an error.

A rule says where one of our tensors comes from: ``{regex of our name: (templates of the source keys,
transform)}``. Naming the target rather than the source lets one of ours be made of several of theirs (a batch
norm folded into a kernel; q, k and v fused), one tensor at a time, so that a network of any size is converted
in the memory of its largest tensor.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fseg_jax.errors import InputError

Rule = tuple[tuple[str, ...], Callable[..., np.ndarray]]
Rules = Mapping[str, Rule]


@dataclass(frozen=True)
class Layout:
    """How one kind of publisher names a family's tensors.

    - ``signature``: a regex that some key of such a checkpoint, and of no other layout's before it, matches
      in full;
    - ``rules``: for each of our tensors, the source keys it is made of and how;
    - ``ignored``: keys that such checkpoints hold and the network has no use for;
    - ``rename``: substitutions on the source's keys, made first (wrapper prefixes; chunked blocks).
    """

    name: str
    signature: str
    rules: Rules
    ignored: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)

    def keys(self, state: Mapping[str, Any]) -> dict[str, str]:
        """The source's own key for each renamed one."""
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
    what: str,
) -> Iterator[tuple[str, np.ndarray]]:
    """Every target tensor, made of a checkpoint's: one at a time, with the target's shape and dtype.

    - ``state``: arrays by the publisher's key; reading one may be lazy, and no key is read twice in a row;
    - ``targets``: a shape and a dtype for each of the network's names (``jax.ShapeDtypeStruct`` serves);
    - ``what``: the checkpoint and the network, as the messages are to call them.

    The keys are checked before the first tensor is read. InputError where the checkpoint is of no known
    layout, lacks a key, holds one that no rule uses and no layout ignores, or has a tensor of another shape.
    """
    layout, keys = _recognise(state, layouts, what)
    plan: dict[str, tuple[list[str], Callable[..., np.ndarray]]] = {}
    missing: list[str] = []
    used: set[str] = set()
    rules = [(re.compile(pattern), *rule) for pattern, rule in layout.rules.items()]
    for target in targets:
        sources, transform = _rule(rules, target)
        plan[target] = ([keys[key] for key in sources if key in keys], transform)
        missing += [key for key in sources if key not in keys]
        used.update(sources)
    left = [key for key in keys if key not in used and not _matches(key, layout.ignored)]
    if missing or left:
        lacks = f"lacks {_some(missing)}" if missing else ""
        extra = f"holds {_some(left)} that the network has no place for" if left else ""
        raise InputError(
            f"{what}: read as {layout.name}, the checkpoint {' and '.join(filter(None, (lacks, extra)))}: "
            "give the checkpoint of this very encoder"
        )

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for target, (sources, transform) in plan.items():
            yield (
                target,
                _made(target, [state[key] for key in sources], transform, targets[target], sources, what),
            )

    return tensors()


def _recognise(
    state: Mapping[str, Any], layouts: Sequence[Layout], what: str
) -> tuple[Layout, dict[str, str]]:
    for layout in layouts:
        keys = layout.keys(state)
        if any(re.fullmatch(layout.signature, key) for key in keys):
            return layout, keys
    raise InputError(
        f"{what}: the keys ({_some(list(state))}) are of none of the layouts known for this network "
        f"({', '.join(layout.name for layout in layouts)}): give the checkpoint of this very encoder"
    )


def _rule(
    rules: Sequence[tuple[re.Pattern[str], tuple[str, ...], Callable[..., np.ndarray]]], target: str
) -> Rule:
    for pattern, sources, transform in rules:
        if match := pattern.fullmatch(target):
            return tuple(match.expand(source) for source in sources), transform
    raise LookupError(f"no rule for {target}")


def _made(
    target: str,
    values: list[Any],
    transform: Callable[..., np.ndarray],
    wanted: Any,
    sources: list[str],
    what: str,
) -> np.ndarray:
    shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in zip(sources, values, strict=True))
    mismatch = InputError(
        f"{what}: {target} is {tuple(wanted.shape)}, and {shapes} does not fit it: "
        "give the checkpoint of this very encoder"
    )
    try:
        made = transform(*values)
    except (ValueError, IndexError) as error:
        raise mismatch from error
    if made.shape != tuple(wanted.shape):
        raise mismatch
    return np.ascontiguousarray(made, dtype=wanted.dtype)


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def _some(keys: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more


# What the rules are made of. Published kernels are (out, in, …), ours (…, in, out).


def identity(value: np.ndarray) -> np.ndarray:
    """As it is."""
    return value


def to_linear(weight: np.ndarray) -> np.ndarray:
    """(out, in) → (in, out)."""
    (_, _) = weight.shape
    return weight.T


def to_conv(weight: np.ndarray) -> np.ndarray:
    """(out, in, h, w) → (h, w, in, out)."""
    return weight.transpose(2, 3, 1, 0)


def to_pointwise(weight: np.ndarray) -> np.ndarray:
    """(out, in, 1, 1), or (out, in), → (in, out)."""
    return weight.reshape(weight.shape[:2]).T


def fold_kernel(eps: float) -> Callable[..., np.ndarray]:
    """The kernel of a convolution and the batch norm after it, as one: the norm's scale multiplies each
    output.
    """

    def fold(weight: np.ndarray, gamma: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return to_conv(weight.astype(np.float32)) * _scale(gamma, variance, eps).astype(np.float32)

    return fold


def fold_bias(eps: float) -> Callable[..., np.ndarray]:
    """The bias of a convolution without one and the batch norm after it, as one."""

    def fold(gamma: np.ndarray, variance: np.ndarray, beta: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return beta.astype(np.float64) - mean.astype(np.float64) * _scale(gamma, variance, eps)

    return fold


def _scale(gamma: np.ndarray, variance: np.ndarray, eps: float) -> np.ndarray:
    return gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + eps)
