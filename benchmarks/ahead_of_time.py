"""Compile numerics and encoders for TPUs on a machine without one, and read what the compiler says.

    JAX_PLATFORMS=cpu python -m benchmarks.ahead_of_time [--chip CHIP]… [CASE]…

``pip install 'fseg-jax[aot]'`` brings the compiler (libtpu). Cycles are its own estimates, not measurements.
It has none for gathers, sorts, copies beside other work, and Pallas' kernels, which are counted. Each program
is printed as a line of JSON; where all cases were compiled, ``results/ahead_of_time.md`` is written.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct as Shape
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.measure import RESULTS
from fseg_jax.encoders.architectures import build_abstract
from fseg_jax.encoders.catalog.published import CATALOG
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.encoder import build_encoder
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.methods import fseg
from fseg_jax.numerics import nmf
from fseg_jax.numerics.blending import blend_tiles
from fseg_jax.numerics.kmeans import lloyd
from fseg_jax.numerics.kmeans.slabs import DEVICE_SLAB, find_nearest, multiply_members, sum_clusters
from fseg_jax.numerics.nnls import DEVICE_STEPS
from fseg_jax.numerics.smoothing import PASSES, Likeness, choose_radius, smooth

HERTZ = {"v5e": 1.5e9, "v6e": 1.75e9}  # clocks, inferred from the published peaks
KEY = jax.eval_shape(lambda: jax.random.key(0))


class Case(NamedTuple):
    """What is compiled.

    Attributes:
        what: in words, with its sizes.
        f: the function.
        arguments: shapes of its arguments.
        turns: how many turns are counted of a loop that ends by itself, by the most that it can make.
    """

    what: str
    f: Callable[..., Any]
    arguments: tuple[Any, ...]
    turns: Mapping[int, int] = {}


def floats(*shape: int) -> Shape:
    return Shape(shape, jnp.float32)


def make_encoder(row: str, name: str, images: int, side: int, blocks: int | None = None) -> Case:
    """Make the case of an encoder of the catalog, of the first blocks alone where their number is given."""
    entry = CATALOG[row]
    config, layer = entry.config, entry.layer
    if blocks is not None:
        assert isinstance(config, ViTConfig)
        config, layer = replace(config, depth=blocks), f"blocks.{blocks - 1}"
    card = replace(classical().card, layer=layer)
    encoder = build_encoder(build_abstract(config, dtype=jnp.bfloat16), card, "bfloat16")
    what = f"{name}, bfloat16, {images} images of {side} px"
    return Case(what, encoder.apply, (encoder.weights, floats(images, side, side, 3)))


def make_factorization(method: str) -> Case:
    f = partial(nmf._factorize, method=method, tolerance=1e-4, max_iterations=nmf.FREE_LIMITS[method])
    what = f"W and H free, {method}, {nmf.FREE_LIMITS[method]} iterations, 16 tiles of 196 × 1024, k = 20"
    return Case(what, f, (floats(16, 196, 1024), floats(16, 196, 20), floats(16, 20, 1024)))


def make_weights(k: int) -> Case:
    f = partial(nmf._solve, method="active set", tolerance=3e-6, max_iterations=500)
    what = f"H fixed, 4096 tokens × 1024, k = {k}, 100 steps"
    return Case(what, f, (floats(4096, 1024), floats(k, 1024)), {500: 100 // DEVICE_STEPS})


def make_labels(k: int) -> Case:
    what = f"labels, 4 tiles of 64² tokens, stride 16, k = {k}"
    return Case(what, partial(fseg.label_pixels, stride=16), (floats(4, 66, 66, k),))


def make_kmeans(k: int, dtype: str) -> Case:
    f = partial(lloyd._fit, k=k, max_iterations=300, tolerance=1e-4)
    what = f"k-means, 262,144 × 1024 of {dtype}, k = {k}, k-means++ and 20 passes"
    return Case(what, f, (Shape((262_144, 1024), jnp.dtype(dtype)), KEY), {300: 20})


def make_pass(k: int, dtype: str) -> Case:
    rounded = dtype == "bfloat16"

    def sum_points(X: jax.Array, mean: jax.Array, centers: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sum_clusters(
            X,
            mean,
            k,
            lambda x, rows: find_nearest(x, centers, rounded=rounded)[0],
            partial(multiply_members, rounded=rounded),
            DEVICE_SLAB,
        )

    what = f"k-means, one pass over 1,000,000 × 1024 of {dtype}, k = {k}"
    return Case(
        what, sum_points, (Shape((1_000_000, 1024), jnp.dtype(dtype)), floats(1, 1024), floats(k, 1024))
    )


def make_blend(k: int, tokens: int) -> Case:
    """Make the case of what comes before labels: tiles are blended and smoothed by one token."""
    frame = 1 + PASSES * choose_radius(1.0, tokens)

    def blend_and_smooth(
        ring: jax.Array, near: jax.Array, at: jax.Array, tissue: jax.Array, *likeness: jax.Array
    ) -> jax.Array:
        W = blend_tiles(ring, near, at, at, halo=tokens // 16, frame=frame)
        smoothed: jax.Array = smooth(W, tissue, Likeness(*likeness), 1.0, (frame - 1) // PASSES)
        return smoothed

    side = tokens - 2 * (tokens // 16) + 2 * frame
    integers = [Shape((32, n), jnp.int32) for n in (9, side)]
    arguments = (floats(1025, tokens, tokens * k), *integers, floats(32, side, side))
    what = f"32 tiles of {tokens}² tokens, blended and smoothed, k = {k}"
    return Case(what, blend_and_smooth, (*arguments, floats(k, 32), floats()))


CASES: dict[str, Callable[[], Case]] = {
    "vit": partial(make_encoder, "uni", "ViT-L/16, 2 blocks", 32, 224, 2),
    "vit-l": partial(make_encoder, "uni", "ViT-L/16, all 24 blocks", 32, 224),
    "vit-g": partial(make_encoder, "h-optimus-0", "ViT-g/14 SwiGLU, all 40 blocks", 32, 224),
    "resnet": partial(make_encoder, "resnet50", "ResNet-50 to stride 16", 64, 256),
    "hals": partial(make_factorization, "hals"),
    "accelerated": partial(make_factorization, "accelerated"),
    "weights": partial(make_weights, 64),
    "blend": partial(make_blend, 64, 32),
    "labels": partial(make_labels, 64),
    "kmeans": partial(make_kmeans, 256, "bfloat16"),
    "pass": partial(make_pass, 256, "bfloat16"),
    "pass-float32": partial(make_pass, 256, "float32"),
}


class Program(NamedTuple):
    """What the compiler says of a program.

    Attributes:
        case: its name.
        chip: what it was compiled for.
        milliseconds: estimated cycles, by the clock.
        temporaries: MiB beside arguments and results.
        code: MiB.
        kernels: calls of Pallas' kernels, in one turn of each loop.
        unwanted: float64, host calls and collectives in it, by name.
        compiled: seconds of CPU time that it took to compile.
    """

    case: str
    chip: str
    milliseconds: float
    temporaries: float
    code: float
    kernels: int
    unwanted: list[str]
    compiled: float


def compile_case(name: str, chip: str) -> Program:
    """Compile a case for one chip."""
    defaults = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    }
    for variable, value in defaults.items():  # no metadata server is asked, and tests may run side by side
        os.environ.setdefault(variable, value)
    case = CASES[name]()
    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2")
    sharding = SingleDeviceSharding(topology.devices[0])
    arguments = jax.tree.map(lambda a: Shape(a.shape, a.dtype, sharding=sharding), case.arguments)
    begin = time.process_time()
    lowered = jax.jit(case.f).trace(*arguments).lower(lowering_platforms=("tpu",))
    compiled = lowered.compile()
    seconds = time.process_time() - begin
    text, memory = compiled.as_text(), compiled.memory_analysis()
    unwanted = re.findall(
        r"\bf64\[|\b(?:all-reduce|all-gather|all-to-all|collective-permute|infeed|outfeed)\b", text
    )
    unwanted += re.findall(r'custom_call_target="(\w*callback\w*)"', text)
    return Program(
        name,
        chip,
        round(count_cycles(text, case.turns) / HERTZ[chip] * 1e3, 2),
        round(memory.temp_size_in_bytes / 2**20, 1),
        round(memory.generated_code_size_in_bytes / 2**20, 1),
        text.count('custom_call_target="tpu_custom_call"'),
        sorted(set(unwanted)),
        round(seconds, 1),
    )


def count_cycles(text: str, turns: Mapping[int, int]) -> int:
    """Sum the estimates in a compiled program's text; a loop's count as often as it turns."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if begin := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
            lines = computations.setdefault(begin[2], [])
            entry = begin[2] if begin[1] else entry
        else:
            lines.append(line)

    def find_bound(name: str) -> int:
        """Find the largest constant that a loop's condition compares with."""
        whole = "\n".join(computations.get(name, []))
        bounds = [int(n) for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", whole)]
        return max([1, *bounds, *map(find_bound, re.findall(r"calls=%?([\w.\-]+)", whole))])

    def add_up(name: str) -> int:
        total = 0
        for line in computations[name]:
            if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                bound = find_bound(loop[1])
                total += turns.get(bound, bound) * add_up(loop[2])
            elif branches := re.search(r"branch_computations=\{([^}]*)\}", line):
                total += max(add_up(branch.strip().lstrip("%")) for branch in branches[1].split(","))
            elif pair := re.search(r"true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)", line):
                total += max(map(add_up, pair.groups()))
            elif call := re.search(r" call\(.*to_apply=%?([\w.\-]+)", line):
                total += add_up(call[1])
            elif estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
                total += int(estimate[1])
        return total

    return add_up(entry)


def write_table(programs: list[Program]) -> None:
    """Write the page of all programs."""
    from importlib.metadata import version

    lines = [
        "# Compiled for TPUs, ahead of time",
        "",
        "The compiler's own estimates, no measurements: without gathers, sorts, and the kernels of Pallas, "
        "whose calls are counted. Loops that end by themselves count the turns that the first column names; "
        f"of two branches the longer. jax {version('jax')}, libtpu {version('libtpu')}. Made by "
        "`JAX_PLATFORMS=cpu python -m benchmarks.ahead_of_time`.",
        "",
        "| what | chip | ms, estimated | temporaries, MiB | code, MiB | kernels | CPU seconds to compile |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {CASES[p.case]().what} | {p.chip} | {p.milliseconds:g} | {p.temporaries:g} | {p.code:g} | "
            f"{p.kernels} | {p.compiled:g} |"
            for p in programs
        ),
    ]
    (RESULTS / "ahead_of_time.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


@click.command()
@click.argument("cases", nargs=-1, type=click.Choice(list(CASES)))
@click.option("--chip", "chips", multiple=True, type=click.Choice(list(HERTZ)), default=list(HERTZ))
def main(cases: tuple[str, ...], chips: tuple[str, ...]) -> None:
    """Compile CASES, or all, for each chip."""
    programs = []
    for case in cases or CASES:
        for chip in chips:
            programs.append(compile_case(case, chip))
            click.echo(json.dumps(programs[-1]._asdict()))
    if not cases and set(chips) == set(HERTZ):
        write_table(programs)


if __name__ == "__main__":
    main()
