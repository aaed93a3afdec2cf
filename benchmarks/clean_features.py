"""Try ways to make features cleaner before they are clustered, and measure what each brings.

    FSEG_DATA=... python -m benchmarks.clean_features [confirm]

Each row changes the tokens of an encoder, fits 32 clusters on tokens of the training images, matches them
with categories by pixels there, and takes the macro F1 of the others: held-out cases of EBHI-Seg (gland or
not; every third image of the training cases, and every third test image), and BCSS (tumour or not), of whose
three regions, read whole, two teach and the third is tested. Stains are normalized. ``confirm`` judges those
of CONFIRMED on all test images, at k = 32 and 64. Rows that ``benchmarks/results/clean_features.json`` holds
are not computed again.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from benchmarks.evaluate_he_small import thin_training
from benchmarks.examples import find_examples
from benchmarks.measure import RESULTS, describe_machine
from benchmarks.steps import SQUARE, WHOLE, match_and_count, open_whole_regions
from fseg_jax.encoders.encoder import Encoder, EncoderCard, build_encoder
from fseg_jax.encoders.load import load_encoder, load_network
from fseg_jax.encoders.side_by_side import SIGN
from fseg_jax.encoders.trained import load_parts
from fseg_jax.encoders.vit.network import VITS, ViT
from fseg_jax.evaluation.data.datasets import Dataset
from fseg_jax.evaluation.data.encoded_dataset import EncodedDataset, encode_dataset
from fseg_jax.evaluation.data.layouts import open_dataset
from fseg_jax.evaluation.protocols.counts import Score, label_pixels, score_fixed, score_nearest
from fseg_jax.evaluation.protocols.fseg_experiment import fit_centers
from fseg_jax.evaluation.protocols.matching import confuse
from fseg_jax.evaluation.report.markdown import format_markdown_table
from fseg_jax.evaluation.report.tables import format_with_interval
from fseg_jax.numerics import kmeans, metrics
from fseg_jax.numerics.axes import normalize
from fseg_jax.numerics.metrics import Interval

STRIDE = 16  # pixels a token, of every bank
K, CONFIRMED_K = (32,), (32, 64)
STARTS = {"EBHI-Seg": 2, "BCSS": 4}  # of k-means; BCSS's vary more
CONFIRMED_STARTS = {"EBHI-Seg": 3, "BCSS": 8}
MODES: dict[str, Score] = {"F-SEG, H fixed": score_fixed, "no factorization": score_nearest}
RESAMPLES = 1000
PATH = RESULTS / "clean_features.json"
HE, LITE, CLASSICAL = "he-small", "efficientnet-lite0", "classical"
CONFIRMED = ("alone", f"{LITE} beside, square roots, each of length one", f"{LITE} beside, as joined")

Tokens = Float[np.ndarray, "tokens c"]
Matrices = Int[np.ndarray, "starts cases n n"]


# ---------------------------------------------------------------------------------------- banks of features


@dataclass(frozen=True)
class Bank:
    """An encoder made of a function of images; its features may be negative."""

    card: EncoderCard
    read: Callable[[UInt8[Array, "b H W 3"]], Float[Array, "b h w c"]]

    def __call__(self, images: UInt8[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        """Compute the features of a batch of images."""
        return self.read(images)


def make_bank(name: str) -> Encoder:
    """Make a bank: an encoder's name, or that with ``at 2 µm``, ``at 4 µm``, ``layers`` or ``signed``."""
    encoder, _, what = name.partition(" ")
    if not what:
        return load_encoder(encoder)
    if what.startswith("at "):
        return _coarsen(load_encoder(encoder), int(what.split()[1]))
    read = _read_he_small if encoder == HE else _read_lite
    return _measure_channels(load_encoder(encoder).card, read(what))


def _coarsen(encoder: Encoder, factor: int) -> Bank:
    """Read an encoder at a coarser resolution, its grid enlarged to tokens of 16 pixels."""

    @jax.jit
    def read(images: Array) -> Array:
        _, height, width, _ = images.shape
        side = STRIDE * factor
        pads = ((0, 0), (0, -height % side), (0, -width % side), (0, 0))
        pixels = _pool(jnp.pad(images.astype(jnp.float32), pads, mode="edge"), factor)
        grid = encoder(jnp.round(pixels).astype(jnp.uint8))
        b, h, w, c = grid.shape
        larger: Array = jax.image.resize(grid, (b, h * factor, w * factor, c), "linear")
        cut: Array = larger[:, : height // STRIDE, : width // STRIDE]
        return cut

    return Bank(encoder.card, read)


def _read_he_small(what: str) -> Callable[[Array], Array]:
    """Read layer2 of he-small's trunk, or what its last block adds up to before the ReLU."""
    parts = load_parts(HE)
    graphdef, state = nnx.split(parts.network)
    mean, std = (np.reshape(values, (1, 1, 1, 3)).astype(np.float32) for values in _colours(parts.card))

    @jax.jit
    def read(images: Array) -> Array:
        network = nnx.merge(graphdef, state)
        x = network.features_to((images / 255 - mean) / std, "layer2").astype(jnp.float32)
        if what == "layers":
            return parts.gains.trunk * _pool(jax.nn.relu(x), 2)
        *blocks, last = getattr(network, "layer3")  # noqa: B009 (set by name)
        for block in blocks:
            x = block(x)
        shortcut = x if last.downsample is None else last.downsample(x)
        added: Array = last.conv2(last.conv1(x, relu=True), add=shortcut)
        return parts.gains.trunk * added.astype(jnp.float32)

    return read


def _read_lite(what: str) -> Callable[[Array], Array]:
    """Read an earlier and a later block of EfficientNet-Lite0, or the usual one, before the ReLU."""
    network = load_network(LITE).network
    network.eval()  # type: ignore[no-untyped-call]
    card = load_encoder(LITE).card
    graphdef, state = nnx.split(network)
    mean, std = (np.reshape(values, (1, 1, 1, 3)).astype(np.float32) for values in _colours(card))

    @jax.jit
    def read(images: Array) -> Array:
        outputs = nnx.merge(graphdef, state).intermediates((images / 255 - mean) / std)
        if what == "signed":
            return outputs[card.layer].astype(jnp.float32)
        return _pool(jax.nn.relu(outputs["blocks.4"].astype(jnp.float32)), 2)

    return read


def _colours(card: EncoderCard) -> tuple[Sequence[float], Sequence[float]]:
    return card.mean, card.std


def _measure_channels(card: EncoderCard, read: Callable[[Array], Array]) -> Bank:
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    return Bank(replace(card, channels=jax.eval_shape(read, image).shape[-1]), read)


def _pool(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b p q c"]:
    b, h, w, c = x.shape
    return x.reshape(b, h // side, side, w // side, side, c).mean((2, 4))


# -------------------------------------------------------------------------------------- what is done to them


class Banks:
    """The banks of one dataset, each encoded when it is first asked for, and its truth."""

    def __init__(self, datasets: Sequence[Dataset], folder: Path):
        self.datasets, self.folder, self._kept = datasets, folder, dict[str, EncodedDataset]()

    def encode(self, name: str) -> EncodedDataset:
        """Encode the images by a bank."""
        if name not in self._kept:
            (self.folder / name).mkdir()
            scale = self.datasets[0].mpp or 1.0
            self._kept[name] = encode_dataset(
                self.datasets[0],
                make_bank(name),
                self.folder / name,
                scale=scale,
                tile=WHOLE,
                stain_normalization=True,
            )
        return self._kept[name]

    def __getitem__(self, name: str) -> Tokens:
        return np.asarray(self.encode(name).features)


def scale_evenly(tokens: Tokens, weight: float = 1.0) -> Tokens:
    """Scale tokens to a total deviation of ``weight``."""
    scaled: Tokens = tokens * (weight / np.sqrt(tokens.var(0).sum()))
    return scaled


def split_signs(tokens: Tokens) -> Tokens:
    """Lay the negative half beside the positive one."""
    return np.concatenate([np.maximum(tokens, 0), np.maximum(-tokens, 0)], 1)


def subtract_positions(tokens: Tokens, encoded: EncodedDataset) -> Tokens:
    """Subtract the mean over images of one size at each place of their grid, less that over all places."""
    first = encoded.tiles[0]
    grids = tokens.reshape(len(encoded.tiles), first.rows, first.columns, -1)
    means = grids[encoded.is_train].mean(0)
    left: Tokens = np.maximum(grids - (means - means.mean((0, 1))), 0).reshape(tokens.shape)
    return left


Option = Callable[[Banks], Tokens]


def list_options(encoder: str) -> dict[str, Option]:
    """List what is tried with an encoder."""

    def own(banks: Banks) -> Tokens:
        return banks[encoder]

    def beside(other: str, weight: float, banks: Banks) -> Tokens:
        return np.concatenate([scale_evenly(banks[encoder]), scale_evenly(banks[other], weight)], 1)

    def divide(power: float, banks: Banks) -> Tokens:
        deviations = banks[encoder].std(0)
        scales: Tokens = np.maximum(deviations, 1e-3 * deviations.max()) ** power
        divided: Tokens = banks[encoder] / scales
        return divided

    def of_length_one(power: float, others: Sequence[str], banks: Banks) -> Tokens:
        return np.concatenate([normalize(banks[name] ** power) for name in (encoder, *others)], 1)

    options: dict[str, Option] = {"alone": own}
    if encoder == HE:
        options[f"{LITE} beside, as joined"] = lambda banks: banks[f"{HE}{SIGN}{LITE}"]
    others = {HE: (LITE, CLASSICAL), LITE: (CLASSICAL,), CLASSICAL: ()}[encoder]
    for other in others:
        options[f"{other} beside, square roots, each of length one"] = partial(of_length_one, 0.5, (other,))
        options[f"{other} beside, each of length one"] = partial(of_length_one, 1, (other,))
    options |= {
        "square roots of length one": partial(of_length_one, 0.5, ()),
        "square roots": lambda banks: np.sqrt(banks[encoder]),
        "of length one": partial(of_length_one, 1, ()),
        "channels over their deviation": partial(divide, 1.0),
        "channels over the root of their deviation": partial(divide, 0.5),
    }
    if encoder == HE:
        options |= {f"{LITE} beside, × {w:g}": partial(beside, LITE, w) for w in (0.5, 1, 2)}
        options["negative half beside"] = lambda banks: np.concatenate(
            [banks[HE], np.maximum(-banks[f"{HE} signed"], 0)], 1
        )
    elif encoder == LITE:
        options["negative half beside"] = lambda banks: split_signs(banks[f"{LITE} signed"])
    if encoder != CLASSICAL:
        layer = "layer2" if encoder == HE else "blocks.4"
        options |= {f"{layer} beside, × {w:g}": partial(beside, f"{encoder} layers", w) for w in (0.5, 1)}
    weights = (0.5, 1, 2) if encoder == HE else (0.5, 1)
    for mpp in (2, 4):
        options |= {
            f"{mpp} µm per pixel beside, × {w:g}": partial(beside, f"{encoder} at {mpp} µm", w)
            for w in weights
        }
    return options


# ------------------------------------------------------------------------------------------- how it is judged


class Judged(NamedTuple):
    """The tests of a row by k and mode: confusion, and the share of pixels in their cluster's category."""

    matrices: dict[tuple[int, str], Matrices]
    purity: dict[tuple[int, str], float]


def judge(banks: Banks, tokens: Tokens, ks: Sequence[int], starts: int) -> Judged:
    """Cluster, match and count: each fold is tested by what it was not fitted on."""
    folds: dict[tuple[int, str], list[Matrices]] = {}
    pure: dict[tuple[int, str], list[float]] = {}
    layout = banks.encode(HE)
    card = replace(layout.card, channels=tokens.shape[1])
    for dataset in banks.datasets:
        is_train = np.array([dataset.items[n].split == "train" for n in layout.item_of])
        encoded = replace(layout, is_train=is_train, features=tokens, card=card)
        square = SQUARE if dataset.name.startswith("BCSS") else None
        for k in ks:
            fitted = [fit_centers(encoded, k, "tokens", 0, start) for start in range(starts)]
            for mode, score in MODES.items():
                judged = [judge_start(dataset, encoded, mu, score, square) for mu in fitted]
                folds.setdefault((k, mode), []).append(np.stack([matrices for matrices, _ in judged]))
                pure.setdefault((k, mode), []).extend(share for _, share in judged)
    return Judged(
        {key: np.concatenate(parts, 1) for key, parts in folds.items()},
        {key: float(np.mean(parts)) for key, parts in pure.items()},
    )


def judge_start(
    dataset: Dataset, encoded: EncodedDataset, mu: Float[Array, "k c"], score: Score, square: int | None
) -> tuple[Int[np.ndarray, "cases n n"], float]:
    """Match clusters on the training images; return the others' confusion by case, and clusters' purity."""
    categories, tested = match_and_count(dataset, encoded, _label(encoded, mu, score), len(mu), square)
    total = np.sum([*tested.values()], axis=0)
    return (
        np.stack([confuse(categories, tested[case]) for case in sorted(tested)]),
        float(total.max(1).sum() / total.sum()),
    )


def _label(
    encoded: EncodedDataset, mu: Float[Array, "k c"], score: Score
) -> Iterator[tuple[int, np.ndarray]]:
    for batch in encoded.batches():
        scores = score(jnp.asarray(batch.tokens), mu, batch.sizes.prod(1))
        yield from zip(batch.tiles, label_pixels(scores, batch, encoded.card.stride), strict=True)


def compare(matrices: Matrices, baseline: Matrices) -> tuple[float, Interval]:
    """Compare the macro F1 of two rows: how much higher the first is, with a 95 % bootstrap interval.

    Cases are resampled together, and the starts of each row by themselves: on BCSS starts vary more.
    """
    rng = np.random.default_rng(0)
    count = matrices.shape[1]
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)
    sides = []
    for side in (matrices, baseline):
        flat = [drawn @ start.reshape(count, -1) for start in side]
        f1 = np.stack([metrics.macro_f1(each.reshape(RESAMPLES, *side.shape[2:])) for each in flat], 1)
        picked = rng.integers(0, len(side), (RESAMPLES, len(side)))
        sides.append(np.take_along_axis(f1, picked, 1).mean(1))
    low, high = np.percentile(sides[0] - sides[1], (2.5, 97.5))
    first, second = (metrics.macro_f1(side.sum(1)).mean() for side in (matrices, baseline))
    return float(first - second), Interval(float(low), float(high))


# ------------------------------------------------------------------------------------------- position's share


def draw_vit() -> Encoder:
    """Make a ViT-S/16 with drawn weights: what positions do to clusters where nothing was learnt."""
    config = replace(VITS["small"], patch=16, image_size=224)
    card = replace(load_encoder(CLASSICAL).card, name="ViT-S/16, drawn", channels=384, layer="blocks.11")
    network = ViT(config, rngs=nnx.Rngs(0))
    return build_encoder(network, replace(card, mean=(0.5,) * 3, std=(0.5,) * 3))


def measure_positions(tokens: Tokens, encoded: EncodedDataset) -> tuple[float, float]:
    """Measure what a token's place says of its cluster, k = 32: bits beyond chance, and the largest share.

    The share is the largest of a cluster's tokens at the border of the grid, over that of all tokens.
    """
    first = encoded.tiles[0]
    places = first.rows * first.columns
    labels = np.asarray(kmeans.fit(tokens[:60_000], 32, key=jax.random.key(0)).labels)
    place = np.arange(len(labels)) % places
    y, x = place // first.columns, place % first.columns
    border = (y == 0) | (x == 0) | (y == first.rows - 1) | (x == first.columns - 1)

    def bits(labels: np.ndarray) -> float:
        table = np.zeros((places, 32), np.int64)
        np.add.at(table, (place, labels), 1)
        return float(metrics.mutual_information(table) / np.log(2))

    shuffled = np.random.default_rng(0).permutation(labels)
    counts = np.bincount(labels, minlength=32)
    shares = np.bincount(labels[border], minlength=32) / np.maximum(counts, 1)
    return bits(labels) - bits(shuffled), float(shares[counts >= 100].max() / border.mean())


# ------------------------------------------------------------------------------------------------ the results


def prepare(name: str, folder: Path, every: int) -> Banks:
    """Prepare a dataset, with every n-th of EBHI-Seg's test images."""
    data = find_examples()
    if name == "BCSS":
        (folder / "regions").mkdir()
        return Banks(open_whole_regions(data / "bcss_tumour", folder / "regions"), folder)
    dataset = thin_training(open_dataset(data / "ebhi"))
    tests = [n for n, item in enumerate(dataset.items) if item.split != "train"]
    kept = sorted({*range(len(dataset.items))} - {*tests} | {*tests[::every]})
    thinned = replace(dataset, items=tuple(dataset.items[n] for n in kept), pixels=dataset.pixels[kept])
    return Banks([thinned], folder)


Rows = dict[str, dict[str, Any]]  # by part and row


def measure_options(rows: Rows, is_confirmed: bool) -> None:
    """Judge all options, or those that are confirmed, but what is in ``rows`` already."""
    with tempfile.TemporaryDirectory() as temporary:
        banks = {}
        for name in STARTS:
            (Path(temporary) / name).mkdir()
            banks[name] = prepare(name, Path(temporary) / name, 1 if is_confirmed else 3)
        for encoder in (HE,) if is_confirmed else (HE, LITE, CLASSICAL):
            for name in STARTS:
                measure_encoder(rows, name, banks[name], encoder, is_confirmed)


def measure_encoder(rows: Rows, name: str, banks: Banks, encoder: str, is_confirmed: bool) -> None:
    """Judge the options of an encoder on a dataset."""
    starts = (CONFIRMED_STARTS if is_confirmed else STARTS)[name]
    part = f"{name}, confirmed" if is_confirmed else name
    options = list_options(encoder)
    if name == "EBHI-Seg":  # BCSS's regions have no places in common
        options["mean of each place subtracted"] = partial(_subtract, encoder)
    if is_confirmed:
        options = {option: options[option] for option in CONFIRMED}
    if all(f"{part}; {encoder}; {option}" in rows for option in options):
        return
    baseline: Judged | None = None
    for option, make in options.items():
        key = f"{part}; {encoder}; {option}"
        if key in rows and option != "alone":
            continue
        judged = judge(banks, make(banks), CONFIRMED_K if is_confirmed else K, starts)
        baseline = baseline or judged
        rows[key] = describe_row(judged, None if option == "alone" else baseline)
        write(rows)
        print(key, rows[key], flush=True)


def _subtract(encoder: str, banks: Banks) -> Tokens:
    return subtract_positions(banks[encoder], banks.encode(encoder))


def describe_row(judged: Judged, baseline: Judged | None) -> dict[str, Any]:
    """Describe a row: macro F1, its deviation over starts, purity, and how much it is above the baseline."""
    described = {}
    for (k, mode), matrices in judged.matrices.items():
        f1 = metrics.macro_f1(matrices.sum(1))
        described[f"{mode}, k = {k}"] = {
            "f1": float(f1.mean()),
            "deviation": float(f1.std(ddof=1)),
            "purity": judged.purity[k, mode],
            "above": None if baseline is None else compare(matrices, baseline.matrices[k, mode]),
        }
    return described


def measure_all_positions(rows: Rows) -> None:
    """Measure the bias by position on EBHI-Seg, with and without the mean of each place."""
    with tempfile.TemporaryDirectory() as temporary:
        banks = prepare("EBHI-Seg", Path(temporary), 3)
        for name in (HE, LITE, CLASSICAL, "ViT-S/16, drawn"):
            if name.startswith("ViT"):
                (banks.folder / "vit").mkdir()
                encoded = encode_dataset(banks.datasets[0], draw_vit(), banks.folder / "vit", tile=224)
            else:
                encoded = banks.encode(name)
            tokens = np.asarray(encoded.features)
            for how, values in {
                "as it is": tokens,
                "subtracted": subtract_positions(tokens, encoded),
            }.items():
                bits, share = measure_positions(values, encoded)
                rows[f"positions; {name}; {how}"] = {"bits": bits, "share": share}


def write(rows: Rows) -> None:
    """Write what was measured, and the page."""
    record = {**describe_machine(), "rows": rows}
    PATH.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PATH.with_suffix(".md").write_text(format_page(rows), encoding="utf-8")


TEXT = f"""\
Macro F1 of {K[0]} clusters of tokens, matched with categories on the training images, and in brackets how
much it is above the encoder alone, with the 95 % interval over resampled cases and starts of k-means
({STARTS["EBHI-Seg"]} on EBHI-Seg, {STARTS["BCSS"]} on BCSS, whose starts differ more). Purity: the share
of pixels that are of their cluster's most frequent category. Every third test image of EBHI-Seg; BCSS's
regions whole, in squares of {SQUARE} µm. Stains are normalized. What is *beside* is laid beside the
encoder's features; both parts have a total deviation of 1 on the data set's images, the second times the
number given; *as joined* is `--encoder {HE}{SIGN}{LITE}`, whose parts have it on one image that comes with
scikit-image. Made by `python -m benchmarks.clean_features`; *confirmed*, on all test images, by `python -m
benchmarks.clean_features confirm`. Many rows were looked at, so that an interval just above 0 means
little; those confirmed were chosen by these images too, and their lead is a little flattered.

Not here: high-norm outlier tokens (test-time registers, arXiv 2506.08010). They are learnt, and no learnt
ViT is at hand: drawn weights have none, so nothing can be shown, and nothing is offered."""


def format_page(rows: Rows) -> str:
    """Format the page of all rows."""
    lines = ["# What makes features cleaner", "", TEXT, ""]
    titles = {f"{HE}, confirmed": (HE, ", confirmed"), **{name: (name, "") for name in (HE, LITE, CLASSICAL)}}
    for title, (encoder, suffix) in titles.items():
        table = _format_options(rows, encoder, suffix)
        lines += [f"## {title}", "", *table, ""] if table else []
    positions = [key.split("; ")[1:] for key in rows if key.startswith("positions")]
    if positions:
        cells = [[*key, *_format_positions(rows["; ".join(["positions", *key])])] for key in positions]
        head = ["encoder", "mean of each place", "bits", "border's share"]
        text = (
            "What a token's place in an image of 224 pixels says of its cluster (k = 32, EBHI-Seg), in bits "
            "beyond chance of 5; and the cluster that is most at the border: its share there, over that of "
            "all tokens."
        )
        lines += ["## Position", "", text, "", *format_markdown_table(head, cells), ""]
    return "\n".join(lines)


def _format_options(rows: Rows, encoder: str, suffix: str) -> list[str]:
    """Format the rows of an encoder; nothing where there are none."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in STARTS:
        for key, row in rows.items():
            part, _, option = key.partition("; ")
            if part == name + suffix and option.startswith(f"{encoder}; "):
                found.setdefault(option.partition("; ")[2], {})[name] = row
    measured = {(name, what): None for of in found.values() for name, row in of.items() for what in row}
    head = ["", *(f"{name}, {what}" for name, what in measured), *(f"purity, {name}" for name in STARTS)]
    lines = []
    for option, of in found.items():
        cells = [_format_cell(of[name][what]) if name in of else "" for name, what in measured]
        purity = [f"{next(iter(of[name].values()))['purity']:.3f}" if name in of else "" for name in STARTS]
        lines.append([option, *cells, *purity])
    return format_markdown_table(head, lines) if lines else []


def _format_cell(cell: dict[str, Any]) -> str:
    text = f"{cell['f1']:.3f}"
    if cell["above"] is None:
        return text
    difference, interval = cell["above"]
    return f"{text} ({format_with_interval(difference, Interval(*interval), '+.3f')})"


def _format_positions(row: dict[str, Any]) -> list[str]:
    return [f"{row['bits']:.3f}", f"{row['share']:.2f}"]


def main(command: str = "") -> None:
    """Measure what is not measured yet, and write the table."""
    rows: Rows = json.loads(PATH.read_text(encoding="utf-8"))["rows"] if PATH.exists() else {}
    measure_options(rows, command == "confirm")
    if "positions; he-small; as it is" not in rows:
        measure_all_positions(rows)
    write(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
