"""Measures of how labels look, on labels for which they are known."""

import json

import numpy as np
import pytest

from benchmarks import looks
from benchmarks.looks import MPP, Looks, measure_looks

SIDE = 200


def draw_disc(radius: float) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    return np.hypot(y, x) <= radius


def test_a_shell_round_a_piece_of_tissue_is_a_ring() -> None:
    labels = np.where(draw_disc(80), np.where(draw_disc(75), 1, 2), 0).astype(np.uint8)
    found = measure_looks(labels, MPP)
    shell = (labels == 2).sum() / (labels > 0).sum()
    assert found.ring == pytest.approx(shell)
    assert found.bands == pytest.approx(shell, abs=0.01)  # 20 µm thick
    assert found.specks == 0


def test_halves_of_a_piece_are_no_rings() -> None:
    labels = np.where(draw_disc(80), 1 + (np.arange(SIDE) > 99), 0).astype(np.uint8)
    found = measure_looks(labels, MPP)
    assert found.ring == 0 and found.bands < 0.02
    assert found.regions == pytest.approx(2 / ((labels > 0).sum() * 16e-6))


def test_the_frame_of_a_picture_is_no_border() -> None:
    labels = np.ones((SIDE, SIDE), np.uint8)
    labels[:, :5] = 2  # 20 µm along the frame, where the tissue goes on
    assert measure_looks(labels, MPP).ring == 0
    labels[:, -1] = 0
    labels[:, -6:-1] = 3  # and as much along glass
    assert measure_looks(labels, MPP).ring == pytest.approx(5 / (SIDE - 1))


@pytest.mark.parametrize(("width", "is_band"), [(10, True), (14, False)])
def test_bands_are_what_is_thinner_than_48_um(width: int, is_band: bool) -> None:
    labels = np.ones((SIDE, SIDE), np.uint8)
    labels[:, 100 : 100 + width] = 2
    assert measure_looks(labels, MPP).bands == pytest.approx(width / SIDE if is_band else 0)


def test_specks_are_counted_as_regions() -> None:
    labels = np.ones((SIDE, SIDE), np.uint8)
    labels[10:15, 10:15] = 2  # 400 µm²
    labels[50:56, 50:56] = 3  # 576 µm²
    found = measure_looks(labels, MPP)
    assert found.specks == pytest.approx(1 / 3)
    assert found.regions == pytest.approx(3 / (SIDE**2 * 16e-6))


def test_the_page_shows_all_results_side_by_side_and_what_reaches_the_goals(tmp_path, monkeypatch):
    def keep(name: str, day: int, *rows: tuple[str, float, float, float, float]) -> None:
        named = [
            {"field": f, "clusters": "its own 8", "mode": "fixed", **Looks(*m)._asdict()} for f, *m in rows
        ]
        result = {"commit": "abc", "measured": f"2026-01-0{day}", "rows": named}
        (tmp_path / f"looks_{name}.json").write_text(json.dumps(result))

    monkeypatch.setattr(looks, "RESULTS", tmp_path)
    keep("after", 2, ("TCGA", 0.03, 0.2, 150, 0.5), ("B", 0.0, 0.1, 151, 0.1))
    keep("before", 1, ("TCGA", 0.25, 0.65, 563.2, 0.74))
    page = looks.format_page().splitlines()
    kept = [line.partition("; ")[2] for line in page if line.startswith("- ")]
    assert kept == [
        "ring ≤ 0.03 in 0 of 1, specks ≤ 0.2 in 0 of 1, regions ≤ 150 in 0 of 1",
        "ring ≤ 0.03 in 1 of 1, specks ≤ 0.2 in 2 of 2, regions ≤ 150 in 1 of 2",  # B has no border
    ]
    head, _, *table = [line for line in page if line.startswith("|")]
    assert head.startswith("| image | clusters | mode | ring, before | ring, after | specks, before |")
    assert table == [
        "| TCGA | its own 8 | fixed | 0.25 | **0.03** | 0.65 | **0.20** | 563 | **150** | 0.74 | 0.50 |",
        "| B | its own 8 | fixed |  | 0.00 |  | **0.10** |  | 151 |  | 0.10 |",
    ]
    assert [line for line in page if line.startswith("![")] == [
        "![Segmentations, before](looks_before.jpg)",
        "![Segmentations, after](looks_after.jpg)",
    ]


def test_a_picture_without_tissue_has_nothing() -> None:
    assert measure_looks(np.zeros((9, 9), np.uint8), MPP) == (0, 0, 0, 0)
