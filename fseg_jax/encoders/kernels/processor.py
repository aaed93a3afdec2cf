"""What this machine's processor is fast at, read from what it can do; nothing is timed."""

import re
from functools import cache
from typing import Any, NamedTuple, cast

import jax

# In the order of what they can do; the last that there is names the processor.
_SETS = {
    "avx": "AVX",
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512bf16": "AVX-512-BF16",
    "amx-bf16": "AMX-BF16",
    "neon": "NEON",
    "sve": "SVE",
}
# The description of its target that every program of XLA's carries: fields 2 and 3 of a protocol buffer.
_TARGET = re.compile(
    rb"\x12[\x01-\x7f](?P<name>[\w.-]*)\x1a[\x80-\xff]*[\x00-\x7f](?P<features>[+-][\w.-]+(,[+-][\w.-]+)+)",
    re.S,
)


class Processor(NamedTuple):
    """A processor's name (LLVM's: ``znver3``, ``skylake``) and the extensions of its instructions that XLA
    uses; neither where XLA does not say.
    """

    name: str
    extensions: frozenset[str]

    @property
    def instruction_set(self) -> str:
        """The widest instructions for products, as their makers write them."""
        found = [said for extension, said in _SETS.items() if extension in self.extensions]
        return found[-1] if found else "unknown"

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether products of bfloat16 take less time than those of float32.

        They take half or less with AMX, and with AVX-512-BF16 on AMD's Zen 4 and 5. Intel's AVX-512-BF16
        makes no more products than float32, and what has no instruction for them widens them first: that
        takes longer than float32.
        """
        return "amx-bf16" in self.extensions or (
            "avx512bf16" in self.extensions and self.name.startswith("znver")
        )


@cache
def detect_processor() -> Processor:
    """This machine's, as far as XLA uses it: ``XLA_FLAGS=--xla_cpu_max_isa=AVX2`` makes it a lesser one."""
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            compiled = jax.jit(lambda: 0).lower().compile()
            program = cast(Any, compiled.runtime_executable()).serialize()
    except (RuntimeError, AttributeError):  # no CPU among JAX's platforms, or a program that cannot be kept
        program = b""
    return parse_program(program)


def parse_program(program: bytes) -> Processor:
    """The processor that a program of XLA's says it is for."""
    found = _TARGET.search(program)
    if found is None:
        return Processor("", frozenset())
    features = found["features"].decode().split(",")
    return Processor(found["name"].decode(), frozenset(each[1:] for each in features if each[0] == "+"))
