"""Compare the text towers of the catalog, at their real size, with the published ones.

    python -m benchmarks.text_parity

Each gets random weights under the published names, and the converter makes ours of them. The relative error
‖ours − theirs‖ / ‖theirs‖ of the embeddings of texts of several lengths, and of images, goes to
``results/text_parity.md``. Needs torch and transformers.
"""

import importlib
import platform
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fseg_jax.encoders.architectures import count_parameters
from fseg_jax.encoders.catalog.published import CATALOG
from fseg_jax.encoders.text.network import TextConfig
from fseg_jax.encoders.weights.convert import convert_to_network

RESULTS = Path(__file__).parent / "results" / "text_parity.md"

_REFERENCES = {"bert": "transformers: BertModel", "coca": "its code, written anew"}
_PREAMBLE = """\
# Text towers at their real size, against the published ones

Random weights, four texts of 3 to all tokens, padded as the authors do, and four images' embeddings; the
relative error ‖ours − theirs‖ / ‖theirs‖ of what comes out in the space of both. (torch's): the published
tower in torch's bfloat16. Parameters: those of the tower, of what brings images to the space and of the
temperature; BERT's two embeddings of the first and the second text are added to the positions in ours. What
is written anew of CONCH's code gave what that code gives, to the last bit, with drawn weights. Made by
`python -m benchmarks.text_parity`."""
_COLUMNS = (
    "model",
    "reference",
    "texts, float32",
    "texts, bfloat16",
    "(torch's)",
    "images, float32",
    "images, bfloat16",
    "(torch's)",
    "parameters",
    "catalog's",
    "ours",
)


def measure(name: str) -> tuple[str, ...]:
    """Measure a model's text tower; return the cells of its line."""
    text = CATALOG[name].text
    assert text is not None
    config = text.config
    references: Any = importlib.import_module("weights_convert.references")
    towers: Any = importlib.import_module("weights_convert.text_references")
    module = references.randomise(towers.build_text_tower(config), seed=0)
    tokens, embedding = _draw(config, text.longest)
    theirs, low = (
        towers.observe_text_tower(module, tokens, embedding, autocast=autocast) for autocast in (False, True)
    )
    state = references.get_published(module)
    errors = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        tower = convert_to_network(state, config, label=name, dtype=dtype)
        graph, weights = nnx.split(tower)

        @jax.jit
        def run(weights: Any, tokens: jax.Array, embedding: jax.Array, graph: Any = graph) -> Any:
            net = nnx.merge(graph, weights)
            return {"texts": net(tokens), "images": net.embed_image(embedding)}

        ours = run(weights, jnp.asarray(tokens), jnp.asarray(embedding))
        errors[dtype] = {name: _compare(ours[name], theirs[name]) for name in theirs}
    parameters = sum(parameter.numel() for parameter in module.parameters())
    cells = [
        f"{error:.1e}"
        for name in ("texts", "images")
        for error in (
            errors[jnp.float32][name],
            errors[jnp.bfloat16][name],
            _compare(low[name], theirs[name]),
        )
    ]
    is_equal = "equal" if parameters == text.parameters else "DIFFERS"
    return (
        name,
        _REFERENCES[config.kind],
        *cells,
        f"{parameters:,}",
        is_equal,
        f"{count_parameters(tower):,}",
    )


def _draw(config: TextConfig, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw texts of 3 tokens to as many as are read, padded, and the embeddings of images."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, config.vocabulary, (4, longest)).astype(np.int32)
    for row, length in zip(tokens, (3, 20, longest - 1, longest), strict=True):
        row[length:] = 0
    return tokens, rng.standard_normal((4, config.image_channels), np.float32)


def _compare(ours: Any, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs))


def main() -> None:
    """Measure all text towers and write the table."""
    lines = [*_PREAMBLE.splitlines(), "", f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    for row in CATALOG.values():
        if row.text is not None:
            lines.append(f"| {' | '.join(measure(row.name))} |")
            print(lines[-1], flush=True)
    names = ("jax", "flax", "torch", "transformers")
    versions = ", ".join(f"{name} {importlib.import_module(name).__version__}" for name in names)
    device = f"{jax.devices()[0].device_kind}, {platform.machine()}"
    RESULTS.write_text("\n".join([*lines, "", f"{versions}; {device}.", ""]))


if __name__ == "__main__":
    main()
