"""Whatever is wrong with a file, it is one line: thousands of damaged ones, of all that is read.

``python -m pytest -m long tests/fuzz`` reads ``CASES`` of each kind, others at each run, and prints what came
of them; some of each are read by every run of the tests, the same ones.
"""

from collections.abc import Iterator
from itertools import chain
from random import Random

import pytest
from cases import MEMORY, Outcome, Reader
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from readers import READERS

FEW, CASES = 12, 350
SLOW = (  # to begin with: what reads them compiles, or the sample takes a run of the program
    *("classifier", "unfinished classifier", "unfinished encoder"),
    *("cohort", "sampled features", "embeddings", "slide, tiled TIFF by fseg segment"),
)

_how = settings(
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)
_chance = st.randoms(use_true_random=False)


class Tally:
    """What came of the cases of each kind."""

    def __init__(self) -> None:
        self._outcomes: dict[str, list[Outcome]] = {}

    def add(self, name: str, outcome: Outcome) -> None:
        self._outcomes.setdefault(name, []).append(outcome)

    def table(self) -> str:
        lines = [f"{'':42}{'cases':>7}{'read':>7}{'refused':>9}{'most s':>8}{'most MB':>9}"]
        for name, all_ in [*self._outcomes.items(), ("all", list(chain(*self._outcomes.values())))]:
            read = sum(outcome.what == "read" for outcome in all_)
            refused = sum(outcome.what == "refused" for outcome in all_)
            seconds, memory = (max(values) for values in zip(*(o[2:] for o in all_), strict=True))
            counts = f"{len(all_):7}{read:7}{refused:9}{seconds:8.1f}{memory / 1e6:9.0f}"
            lines.append(f"{name:42}{counts}")
        return "\n".join(lines)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as reading:
        yield reading


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    counted = Tally()
    yield counted
    print(f"\n{counted.table()}")


def check(reader: Reader, tally: Tally, name: str, random: Random) -> None:
    outcome = reader.read(name, random)
    tally.add(name, outcome)
    assert outcome.good and outcome.memory <= MEMORY, f"{outcome.what}: {outcome.detail}"


@pytest.mark.parametrize("name", [name for name in READERS if name not in SLOW])
def test_a_damaged_file_is_read_or_refused_in_one_line(reader, tally, name):
    @settings(_how, max_examples=FEW, derandomize=True)
    @given(_chance)
    def run(random):
        check(reader, tally, name, random)

    run()


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_damaged_files_are_read_or_refused_in_one_line(reader, tally, name):
    @settings(_how, max_examples=CASES)
    @given(_chance)
    def run(random):
        check(reader, tally, name, random)

    run()
