"""Measure the speed of float32 and bfloat16 encoders on this processor and as on one without AVX-512.

    python -m benchmarks.processors [--tiny]

Rates are images a second of CPU time on one core, which other work on the machine hardly changes. For each
kind of processor a process runs with instructions limited by ``ONEDNN_MAX_CPU_ISA`` and ``XLA_FLAGS``. The
matrix products of XLA, which take all of a transformer's time, ignore both variables: transformers are left
out where they are set.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from benchmarks.measure import OURS, REPEATS, Timing, report_row, save_result

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}
KINDS: dict[str, dict[str, str]] = {"this processor": {}, "AVX2": AVX2}
BATCH = 2
SIDES = {"he-small": 224, "ResNet-50 to stride 16": 256, "ViT-S/16": 224}


def prepare_encoder(name: str, dtype: str) -> Callable[[], Any]:
    """Prepare a call that encodes a batch of noise; weights are random too, except those of he-small."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from fseg_jax.encoders.architectures import build_abstract
    from fseg_jax.encoders.catalog.published import CATALOG
    from fseg_jax.encoders.load import load_encoder

    generator, side = np.random.default_rng(0), SIDES[name]
    if name == "he-small":
        images = generator.integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)
        return partial(load_encoder(name, dtype=dtype), jnp.asarray(images))
    entry = CATALOG["resnet50" if name.startswith("ResNet") else "kaiko-s16"]
    graphdef, state = nnx.split(build_abstract(entry.config, dtype=jnp.dtype(dtype)))
    weights = jax.tree.map(lambda a: jnp.asarray(0.02 * generator.standard_normal(a.shape), a.dtype), state)
    x = jnp.asarray(generator.standard_normal((BATCH, side, side, 3)), jnp.float32)
    compute_map = jax.jit(lambda weights, x: nnx.merge(graphdef, weights).grid(x, entry.layer))
    return partial(compute_map, weights, x)


def measure(repeats: int) -> dict[str, Any]:
    """Measure the CPU seconds of each network and precision, in turn."""
    import jax

    from fseg_jax.encoders.kernels.processor import detect_processor

    def measure_cpu_seconds(call: Callable[[], Any]) -> float:
        begin = time.process_time()
        jax.block_until_ready(call())
        return time.process_time() - begin

    calls = {
        (name, dtype): prepare_encoder(name, dtype) for name in SIDES for dtype in ("float32", "bfloat16")
    }
    first = {key: measure_cpu_seconds(call) for key, call in calls.items()}
    rounds = [{key: measure_cpu_seconds(call) for key, call in calls.items()} for _ in range(repeats)]
    timings = {key: Timing.from_repeats([times[key] for times in rounds], first[key]) for key in calls}
    return {
        "instruction_set": detect_processor().instruction_set,
        "seconds": [[name, dtype, *timing] for (name, dtype), timing in timings.items()],
    }


@click.command()
@click.option("--tiny", is_flag=True, help="Once each.")
@click.option("--here", is_flag=True, hidden=True)
def main(tiny: bool, here: bool) -> None:
    """Measure each network and precision on each kind of processor."""
    if here:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before XLA counts the cores
        print(json.dumps(measure(1 if tiny else REPEATS)))
        return
    timings: dict[str, dict[str, Timing]] = {name: {} for name in SIDES}
    environment = {name: value for name, value in os.environ.items() if name not in AVX2}
    command = [sys.executable, "-m", "benchmarks.processors", "--here", *(["--tiny"] if tiny else [])]
    for kind, variables in KINDS.items():
        run = subprocess.run(command, env=environment | variables, stdout=subprocess.PIPE, check=True)
        result = json.loads(run.stdout)
        title = kind if variables else f"{result['instruction_set']}, {kind}"
        for name, dtype, *timing in result["seconds"]:
            if not (variables and name.startswith("ViT")):
                timings[name][f"{OURS} {dtype}, {title}"] = Timing(*timing)
    rows = [
        report_row(f"{name}, {SIDES[name]} px, batch {BATCH}, one core", "images/s", BATCH, timings[name])
        for name in SIDES
    ]
    save_result("processors", rows, tiny=tiny)


if __name__ == "__main__":
    main()
