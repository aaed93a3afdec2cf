"""What views are cut from at each step of a training, and the key that says where.

Views are cut from all fields where those fit on ``MOST_PAGES`` pages. Otherwise a number of steps draws from
a pool of fields, which were drawn by their chances, and the next steps from another: each field is drawn as
often, and few are needed at once. Which they are depends only on the seed and the step.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from fseg_jax.numerics.arrays import Key
from fseg_jax.pretraining.fields import Field, Geometry, compute_probabilities
from fseg_jax.pretraining.pages import Pages, lay_out_pages, place_fields
from fseg_jax.pretraining.views import FieldTable, Views, cut_views, draw_cuts, tabulate_fields

MOST_PAGES = 170  # 2.1 GB on the device; twice that while a pool follows another
USES = 4  # pairs of views that are drawn of a field of a pool, on average
_VIEWS = np.uint32(2**32 - 1)  # tells the keys of views from those of steps

T = TypeVar("T")


def make_view_key(seed: int, step: int | jax.Array) -> Key:
    """Make the key of a step's views."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _VIEWS), step)


class Supply:
    """What views are cut from.

    Args:
        fields: The tissue.
        geometry: How views are cut.
        pairs: Pairs of views in a step.
        seed: Random seed.
    """

    def __init__(self, fields: Sequence[Field], geometry: Geometry, pairs: int, seed: int):
        self.fields, self.geometry, self.pairs, self.seed = fields, geometry, pairs, seed
        self._probabilities = compute_probabilities(fields)
        self._draw_pool = lru_cache(2)(self._make_pool)
        self.pages = 1 + int(place_fields(fields)[:, 0].max())
        self.period: int | None = None  # steps that draw from the same pool; None: all from all fields
        if self.pages > MOST_PAGES:
            self.pages = MOST_PAGES
            self.period = max(1, USES * len(self._draw_fields(0)) // pairs)

    def draw(self, step: int) -> Views:
        """Draw a step's views on the host."""
        pool = self._get_pool(step)
        cuts = draw_cuts(pool.table, self.geometry, self.pairs, make_view_key(self.seed, step))
        return cut_views(pool.fields, cuts, self.geometry)

    def lay_out(self, step: int, sharding: jax.sharding.Sharding) -> Pages:
        """Lay out on devices what a step's views are cut from."""
        pool = self._get_pool(step)
        places = place_fields(pool.fields)
        pixels = lay_out_pages(pool.fields, places, self.pages)
        pages = Pages(*jax.device_put((pixels, places, pool.table), sharding))
        jax.block_until_ready(pages)
        return pages

    def stream_views(self, start: int, stop: int) -> Iterator[Views]:
        """Yield the views of each step; a thread draws the next two steps' meanwhile."""
        yield from _work_ahead(self.draw, range(start, stop), 2)

    def stream_pages(self, start: int, stop: int, sharding: jax.sharding.Sharding) -> Iterator[Pages]:
        """Yield what each step's views are cut from; a thread lays out the next pool meanwhile."""
        period = self.period or stop
        first = start // period * period
        pools = _work_ahead(lambda step: self.lay_out(step, sharding), range(first, stop, period), 1)
        for begin, pages in zip(range(first, stop, period), pools, strict=True):
            for _ in range(max(start, begin), min(stop, begin + period)):
                yield pages

    def _get_pool(self, step: int) -> "_Pool":
        """Return what a step draws from."""
        return self._draw_pool(0 if self.period is None else step // self.period)

    def _make_pool(self, block: int) -> "_Pool":
        """Make what all steps draw from, or so many steps after as many blocks of them."""
        if self.period is None:
            return _Pool(self.fields, tabulate_fields(self.fields, self._probabilities))
        pool = self._draw_fields(block)
        return _Pool(pool, tabulate_fields(pool, np.ones(len(pool))))

    def _draw_fields(self, block: int) -> list[Field]:
        """Draw the fields of a pool: as many as fit on the pages."""
        rng = np.random.default_rng([self.seed, block])
        drawn = [
            self.fields[i] for i in rng.choice(len(self.fields), 2 * len(self.fields), p=self._probabilities)
        ]

        def overflows(count: int) -> bool:
            return int(place_fields(drawn[:count])[:, 0].max()) >= MOST_PAGES

        # A page holds any field, so that as many as there are pages fit.
        fitting = bisect_left(range(MOST_PAGES + 1, len(drawn) + 1), True, key=overflows)
        return drawn[: MOST_PAGES + fitting]


class _Pool(NamedTuple):
    fields: Sequence[Field]
    table: FieldTable


def _work_ahead(work: Callable[[int], T], steps: Sequence[int], ahead: int) -> Iterator[T]:
    """Yield the work for each step; a thread does that of so many further steps meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="fseg-views") as pool:
        pending = deque(pool.submit(work, step) for step in steps[:ahead])
        for number in range(len(steps)):
            result = pending.popleft().result()
            pending.extend(pool.submit(work, step) for step in steps[number + ahead : number + ahead + 1])
            yield result
