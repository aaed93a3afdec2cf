"""Format the results of the CAM paper's runs in Markdown: its Tables 1 and 2 with ours beside them."""

import jax

from fseg_jax.cam.run_results import MethodRow, Reproduction, RunResult
from fseg_jax.cam.score_masks import MEASURES, MaskScores, format_table

# The paper's Table 1: accuracy, Jaccard, Dice, F1, recall, precision.
PAPER_SCORES = {
    "1": (0.6762, 0.1115, 0.1812, 0.1812, 0.3971, 0.1465),
    "2": (0.6009, 0.0991, 0.1696, 0.1696, 0.4105, 0.1316),
    "3": (0.6018, 0.1075, 0.1816, 0.1816, 0.4497, 0.1391),
    "4": (0.6402, 0.1175, 0.1861, 0.1861, 0.3728, 0.1505),
    "5": (0.5214, 0.1388, 0.2211, 0.2211, 0.6337, 0.1572),
}
# And its Table 2: average, minimum and maximum seconds an image, and the frames per second of each.
PAPER_SPEED = {
    "1": (0.11, 0.09, 0.12, 9.34, 10.72, 8.05),
    "2": (0.11, 0.10, 0.13, 8.98, 9.97, 7.75),
    "3": (0.11, 0.10, 0.13, 8.95, 10.10, 7.94),
    "4": (0.09, 0.09, 0.09, 11.00, 11.19, 10.54),
    "5": (0.09, 0.09, 0.09, 10.97, 11.14, 10.71),
}


def format_tables(reproduction: Reproduction) -> str:
    """Format the two tables, other ways to a mask, and what the classifiers were made of."""
    results = reproduction.results
    text = [_introduce(reproduction)]
    if any(result.source != result.run.source for result in results):
        text.append(
            "Runs 2 to 5 of the paper learn from whole images, with and without polyps. None without was "
            "given (`--negatives`), so they learnt from the dataset's tiles here, as run 1 does.\n"
        )
    text += [
        "## Table 1: polyp segmentation, means over images\n",
        _format_scores(results, reproduction.baselines),
        "## Table 2: seconds and frames per second, an image\n\nFrom the decoded image to its mask, one at a "
        "time, compilation excluded. As in the paper, Mi-fps is of the shortest time.\n",
        _format_speed(results),
        "## Other ways to a mask, on the same images\n",
        _format_methods(results, reproduction.baselines),
        "## What the classifiers were made of\n",
        _format_classifiers(results),
    ]
    return "\n".join(text)


def _introduce(reproduction: Reproduction) -> str:
    split, classifier = reproduction.split, reproduction.settings.classifier
    return (
        f"# Medico 2021 (Storås 2021) on {reproduction.dataset}\n\n"
        f"{len(split.test)} images are scored that no step has seen; {len(split.validation)} others chose "
        f"the epoch and, where it says so, the thresholds. Network {classifier.network}, "
        f"{classifier.size} pixels, {classifier.epochs} epochs, {classifier.start} "
        f"start, seed {classifier.seed}; {jax.devices()[0].device_kind}. The paper's figures are of "
        "the challenge's own test images, so only the order of size can be compared.\n"
    )


def _format_scores(results: list[RunResult], baselines: dict[str, MaskScores]) -> str:
    lines = []
    for result in results:
        name = result.run.name
        if name in PAPER_SCORES:
            lines.append([f"#{name} paper", *(f"{value:.4f}" for value in PAPER_SCORES[name])])
        lines.append([f"#{name} ours", *(f"{value:.4f}" for value in result.rows[0].scores.mean)])
    lines += [[name, *(f"{value:.4f}" for value in scores.mean)] for name, scores in baselines.items()]
    return format_table(["Run", *(measure.capitalize() for measure in MEASURES)], lines)


def _format_speed(results: list[RunResult]) -> str:
    lines = []
    for result in results:
        name, speed = result.run.name, result.speed
        if name in PAPER_SPEED:
            lines.append([f"#{name} paper", *(f"{value:.2f}" for value in PAPER_SPEED[name])])
        frames = (f"{1 / seconds:.2f}" for seconds in speed)
        lines.append([f"#{name} ours", *(f"{seconds:.3f}" for seconds in speed), *frames])
    return format_table(["Run", "Av-time", "Mi-time", "Ma-time", "Av-fps", "Mi-fps", "Ma-fps"], lines)


def _format_methods(results: list[RunResult], baselines: dict[str, MaskScores]) -> str:
    head = ["Run", "above", "thresholds", "Jaccard", "Dice", "Recall", "Precision", "Dice, 95 %"]
    lines = [_method_line(row) for result in results for row in result.rows]
    lines += [[name, "", "", *_score_cells(scores)] for name, scores in baselines.items()]
    return format_table([*head, "pooled Jaccard"], lines)


def _method_line(row: MethodRow) -> list[str]:
    upper = "" if row.thresholds.upper is None else f" to {row.thresholds.upper:g}"
    return [
        f"#{row.run} {row.method}{', one piece' if row.whole else ''}",
        f"{row.thresholds.lower:g}{upper}",
        "chosen" if row.chosen else "the run's",
        *_score_cells(row.scores),
    ]


def _score_cells(scores: MaskScores) -> list[str]:
    shown = [MEASURES.index(name) for name in ("jaccard", "dice", "recall", "precision")]
    return [
        *(f"{scores.mean[i]:.4f}" for i in shown),
        "{:.3f} to {:.3f}".format(*scores.intervals[MEASURES.index("dice")]),
        f"{scores.pooled[MEASURES.index('jaccard')]:.4f}",
    ]


def _format_classifiers(results: list[RunResult]) -> str:
    head = [
        "Run",
        "source",
        "k",
        "labelled",
        "after spreading",
        "rounds",
        "of the joined right",
        "held-out accuracy",
        "balanced",
        "share of the commoner class",
        "held out",
        "epoch kept",
    ]
    return format_table(head, [_classifier_line(result) for result in results])


def _classifier_line(result: RunResult) -> list[str]:
    propagation, training = result.classifier.propagation, result.classifier.training
    counts = training.held_out.values()
    return [
        f"#{result.run.name}",
        result.source,
        str(result.run.k),
        str(sum(propagation.given.values())),
        str(sum(propagation.labelled.values())),
        str(propagation.rounds),
        _format_share(result.classifier.spread_right),
        _format_share(training.held_out_accuracy),
        _format_share(training.held_out_balanced_accuracy),
        f"{max(counts) / max(1, sum(counts)):.3f}",
        str(sum(counts)),
        str(training.epoch_kept),
    ]


def _format_share(share: float | None) -> str:
    return "" if share is None else f"{share:.3f}"
