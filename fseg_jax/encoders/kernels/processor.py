"""What this machine's processor is fast at, from the instructions that it has; nothing is timed."""

import re
from functools import cache
from typing import Any, NamedTuple, cast

import jax

# From the least to the most capable; the last that a processor has names its instruction set.
_SETS = {
    "avx": "AVX",
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512bf16": "AVX-512-BF16",
    "amx-bf16": "AMX-BF16",
    "neon": "NEON",
    "sve": "SVE",
}
# Every program of XLA carries a description of its target, fields 2 and 3 of a protocol buffer.
_TARGET = re.compile(
    rb"\x12[\x01-\x7f](?P<name>[\w.-]*)\x1a[\x80-\xff]*[\x00-\x7f](?P<features>[+-][\w.-]+(,[+-][\w.-]+)+)",
    re.S,
)


class Processor(NamedTuple):
    """A processor as XLA knows it; both fields are empty where XLA does not say."""

    name: str  # LLVM's: ``znver3``, ``skylake``
    extensions: frozenset[str]  # of the instructions, those that XLA uses

    @property
    def instruction_set(self) -> str:
        """The most capable instructions for products, as their makers write them."""
        names = [name for extension, name in _SETS.items() if extension in self.extensions]
        return names[-1] if names else "unknown"

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether products of bfloat16 take less time than those of float32.

        They take half of the time or less with AMX, and with AVX-512-BF16 on AMD's Zen 4 and 5. Intel's
        AVX-512-BF16 makes no more products a second than float32. A processor without such instructions
        widens the numbers first, and takes longer than for float32.
        """
        return "amx-bf16" in self.extensions or (
            "avx512bf16" in self.extensions and self.name.startswith("znver")
        )


@cache
def detect_processor() -> Processor:
    """Detect this machine's processor, as far as XLA uses it.

    ``XLA_FLAGS=--xla_cpu_max_isa=AVX2`` makes it a lesser one.
    """
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            compiled = jax.jit(lambda: 0).lower().compile()
            program = cast(Any, compiled.runtime_executable()).serialize()  # jax types it as object
    except (RuntimeError, AttributeError):  # no CPU among JAX's platforms, or a program that cannot be kept
        program = b""
    return parse_program(program)


def parse_program(program: bytes) -> Processor:
    """Find the processor that a compiled program of XLA says it is for."""
    match = _TARGET.search(program)
    if match is None:
        return Processor("", frozenset())
    flags = match["features"].decode().split(",")
    return Processor(match["name"].decode(), frozenset(flag[1:] for flag in flags if flag[0] == "+"))
