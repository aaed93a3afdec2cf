"""What a processor is fast at, by what XLA says of it."""

import jax
import pytest

from fseg_jax.encoders import precision
from fseg_jax.encoders.kernels.processor import Processor, detect_processor, parse_program
from fseg_jax.encoders.load import load_encoder

pytestmark = pytest.mark.smoke

BEFORE_2018 = "+avx,+avx2,+fma"
SKYLAKE = BEFORE_2018 + ",+avx512f,+avx512bw,-avx512bf16,-amx-bf16"
ZEN_4 = BEFORE_2018 + ",+avx512f,+avx512vnni,+avx512bf16,-amx-bf16"
SAPPHIRE = BEFORE_2018 + ",+avx512f,+avx512bf16,+amx-bf16,+amx-tile"


@pytest.mark.parametrize(
    "name, features, instruction_set, fast",
    [
        ("znver3", BEFORE_2018 + ",-avx512f", "AVX2", False),
        ("haswell", BEFORE_2018, "AVX2", False),
        ("arrowlake", BEFORE_2018 + ",+avxvnni,-avx512f", "AVX2", False),
        ("skylake-avx512", SKYLAKE, "AVX-512", False),
        ("cooperlake", ZEN_4, "AVX-512-BF16", False),
        ("znver4", ZEN_4, "AVX-512-BF16", True),
        ("sapphirerapids", SAPPHIRE, "AMX-BF16", True),
        ("apple-m1", "+neon,+fullfp16,+dotprod", "NEON", False),
    ],
)
def test_bfloat16_is_fast_where_the_processor_multiplies_it(name, features, instruction_set, fast):
    triple = b"\x0a\x18x86_64-unknown-linux-gnu"
    size = len(features)
    length = bytes([size]) if size < 128 else bytes([size % 128 + 128, size // 128])
    program = b"ELF\x00\x12J" + triple + b"\x12" + bytes([len(name)]) + name.encode() + b"\x1a" + length
    found = parse_program(program + features.encode() + b"(\x80\x01")
    assert found.name == name and found.instruction_set == instruction_set
    assert found.multiplies_bfloat16 == fast
    assert "avx512f" in found.extensions or "+avx512f" not in features


def test_what_xla_does_not_say_is_unknown_and_not_fast():
    assert parse_program(b"") == parse_program(b"ELF\x00+and,\x12") == Processor("", frozenset())
    assert parse_program(b"").instruction_set == "unknown" and not parse_program(b"").multiplies_bfloat16


@pytest.mark.parametrize("extensions, lines", [({"avx2", "fma"}, 1), ({"avx2", "amx-bf16"}, 0)])
def test_a_precision_that_is_slow_here_is_kept_and_said_once(monkeypatch, caplog, extensions, lines):
    monkeypatch.setattr(precision, "detect_processor", lambda: Processor("one", frozenset(extensions)))
    precision._warn_slow.cache_clear()
    for dtype in ("bfloat16", "float32", "bfloat16"):
        encoder = load_encoder("he-small", dtype=dtype)
        assert any(weights.dtype == dtype for weights in encoder.weights)
    said = [record.getMessage() for record in caplog.records if "bfloat16" in record.getMessage()]
    assert (
        said
        == ["bfloat16 takes longer than float32 on this processor (AVX2): float32 is the faster here"][:lines]
    )
    precision._warn_slow.cache_clear()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what a CPU is")
def test_xla_says_what_this_processor_is():
    assert detect_processor().name and detect_processor().instruction_set != "unknown"
