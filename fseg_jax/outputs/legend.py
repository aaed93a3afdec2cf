"""The legend of a slide's picture: cards of clusters with their most typical places, and a table."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from fseg_jax.outputs.areas import count_decimals
from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.lettering import Lettering, measure_text
from fseg_jax.outputs.style import FAINT, INK, RULE

# Pixels of the picture.
ROW, SWATCH = 30, 20  # height of a row of the table; side of a coloured square
TEXT, SMALL = 18, 15  # height of letters
GAP = 32  # between columns
_TILE_GAP = 5  # between the tiles of a card
_TILES_TOP, _BELOW_CARD = 54, 20  # from a card's top to its tiles; below a card
_HEADING = 32  # height of what stands above cards and above the table

_MAX_CARDS = 24
_MAX_CARDS_OF_THREE = 10  # that show three tiles each; where there are more, two
_MAX_LINES = 20  # of a column of the table
_MAX_NAME = 26  # letters


class Entry(NamedTuple):
    """A cluster in the legend.

    Attributes:
        colour: Its colour, in hexadecimal digits.
        name: Its name, shortened.
        area: Its area in mm².
        area_text: Its area, as it is written.
        share_text: Its share of the tissue, as it is written.
        border_text: Its share at the border of tissue, as it is written; empty: not known.
        tiles: The pictures of its most typical places; None: none.
    """

    colour: str
    name: str
    area: float
    area_text: str
    share_text: str
    border_text: str
    tiles: UInt8[np.ndarray, "n side side 3"] | None

    @property
    def line(self) -> str:
        """What a card says below the name."""
        facts = [f"{self.area_text} mm²", self.share_text]
        return " · ".join([*facts, f"border {self.border_text}"] if self.border_text else facts)


class Legend(NamedTuple):
    """The content of the legend.

    Attributes:
        cards: The clusters that have a card, in their order.
        rows: The other clusters on the slide, in their order.
        tissue: The area of all, as it is written.
        absent: Number of clusters that are not on the slide.
        decimals: Decimals of areas.
        step_text: The least step of areas, where that is more than their last digit.
        side: Pixels of the side of a tile.
        tiles: Tiles of a card, at most.
        widths: Pixels of the table's columns of numbers: area, share and, where it is known, border.
        width: Pixels of a column of the legend.
        note: What the tiles are; empty where there are none.
    """

    cards: list[Entry]
    rows: list[Entry]
    tissue: str
    absent: int
    decimals: int
    step_text: str
    side: int
    tiles: int
    widths: tuple[int, ...]
    width: int
    note: str

    @classmethod
    def make(
        cls,
        names: Sequence[str],
        colours: UInt8[np.ndarray, "k 3"],
        areas: np.ndarray,
        step_mm2: float,
        border_shares: Sequence[float] | None = None,
        tiles: Mapping[int, UInt8[np.ndarray, "n side side 3"]] | None = None,
        field: float = 0.0,
    ) -> "Legend":
        """Make the legend of k clusters with areas in mm²; the other arguments are those of ``Picture``."""
        tiles = tiles or {}
        if border_shares is not None and not any(border_shares):  # the whole slide is tissue
            border_shares = None
        total = float(areas.sum())
        decimals = min(2 if areas.max(initial=0) >= 10 else 3, count_decimals(step_mm2))
        step_text = f"in steps of {step_mm2:.1g} mm²" if step_mm2 > 10.0**-decimals else ""
        entries = {}
        for label, (name, colour, area) in enumerate(zip(names, colours, areas.tolist(), strict=True), 1):
            if area > 0:
                border = (
                    "" if border_shares is None else f"{_format_number(100 * border_shares[label - 1], 0)} %"
                )
                entries[label] = Entry(
                    format_hex(colour),
                    name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…",
                    area,
                    _format_number(area, decimals),
                    _format_number(100 * area / total, 1) + " %",
                    border,
                    tiles.get(label),
                )
        pictured = [label for label, entry in entries.items() if entry.tiles is not None]
        largest = sorted(pictured, key=lambda label: (-entries[label].area, label))[:_MAX_CARDS]
        cards = [entries[label] for label in sorted(largest)]
        rows = [entry for label, entry in entries.items() if label not in largest]
        count = 3 if len(cards) <= _MAX_CARDS_OF_THREE else 2
        count = min(count, max([len(card.tiles) for card in cards if card.tiles is not None], default=0))
        side = next((card.tiles.shape[1] for card in cards if card.tiles is not None), 0)
        numbers = ["<0.000", "100.0 %"] if border_shares is None else ["<0.000", "100.0 %", "border"]
        widths = [round(measure_text(text, TEXT)) for text in numbers]
        widths[0] = max(widths[0], round(measure_text(_format_number(total, decimals), TEXT)))
        before, numbers_width = SWATCH + 12, sum(widths) + 18 * (len(widths) - 1)  # and after a name
        least = [
            count * (side + _TILE_GAP) - _TILE_GAP,
            *(before + measure_text(entry.name, TEXT) for entry in cards),
            *(measure_text(card.line, SMALL) for card in cards),
            *(before + measure_text(row.name, TEXT) + 14 + numbers_width for row in rows),
            measure_text("999 not on this slide", TEXT) + 12 + 14 + widths[0],
        ]
        which = f"The {len(cards)} largest clusters" if rows and cards else "Clusters"
        note = f"{which} and their most typical places, {field:.3g} µm wide" if cards else ""
        if note and any(card.border_text for card in cards):
            note += "; border: the part within 32 µm of the tissue's edge"
        return cls(
            cards,
            rows,
            _format_number(total, decimals),
            len(names) - len(entries),
            decimals,
            step_text,
            side,
            count,
            tuple(widths),
            round(max(least)),
            note,
        )

    def measure(self, columns: int) -> tuple[int, int]:
        """Measure the (height, width) of the legend in a number of columns."""
        height = self._measure_cards(columns) + self._measure_table(columns)
        return height, columns * self.width + (columns - 1) * GAP

    def draw(
        self, lettering: Lettering, canvas: UInt8[np.ndarray, "h w 3"], y: int, x: int, columns: int
    ) -> None:
        """Draw the legend with its top left corner at (y, x); tiles are put into the canvas itself."""
        if self.note:
            lettering.write_text(x, y + 14, self.note, SMALL, FAINT)
        for index, card in enumerate(self.cards):
            row, column = divmod(index, columns)
            top = y + _HEADING + row * self._card_height
            self._draw_card(card, lettering, canvas, top, x + column * (self.width + GAP))
        self._draw_table(lettering, y + self._measure_cards(columns), x, columns)

    @property
    def _card_height(self) -> int:
        return _TILES_TOP + self.side + _BELOW_CARD

    def _measure_cards(self, columns: int) -> int:
        rows = -(-len(self.cards) // columns)
        return rows * self._card_height + _HEADING if rows else 0

    def _count_lines(self, columns: int) -> int:
        return min(_MAX_LINES, -(-len(self.rows) // columns))

    def _measure_table(self, columns: int) -> int:
        """Measure the height of the table, with what stands below it."""
        lines = self._count_lines(columns)
        return (_HEADING + lines * ROW + 14 if lines else 0) + (1 + len(self._notes)) * ROW + 6

    def _draw_card(
        self, card: Entry, lettering: Lettering, canvas: UInt8[np.ndarray, "h w 3"], y: int, x: int
    ) -> None:
        lettering.fill_box(x, y, SWATCH, SWATCH, card.colour, rounding=5)
        lettering.write_text(x + SWATCH + 12, y + 17, card.name, TEXT)
        lettering.write_text(x, y + 42, card.line, SMALL, FAINT)
        for index, tile in enumerate([] if card.tiles is None else card.tiles[: self.tiles]):
            left, top = x + index * (self.side + _TILE_GAP), y + _TILES_TOP
            canvas[top : top + self.side, left : left + self.side] = tile

    def _draw_table(self, lettering: Lettering, y: int, x: int, columns: int) -> None:
        """Draw the table; where it has too many rows, the smallest clusters are summed up in one."""
        lines = self._count_lines(columns)
        rows, more = self.rows, 0
        if len(rows) > columns * lines:
            rows = sorted(rows, key=lambda row: -row.area)
            more = len(rows) - (columns * lines - 1)
        if lines:
            y += _HEADING
        for column in range(columns if lines else 0):
            left = x + column * (self.width + GAP)
            own = rows[: len(rows) - more][column * lines : (column + 1) * lines]
            if not own:
                break
            rights = self._locate_numbers(left)
            lettering.write_text(left, y - 11, "Cluster", TEXT, FAINT)
            for right, heading in zip(rights, ("mm²", "share", "border"), strict=False):
                lettering.write_text(right, y - 11, heading, TEXT, FAINT, "right")
            lettering.fill_box(left, y, self.width, 2, RULE)
            for line, row in enumerate(own):
                top = y + 8 + line * ROW
                lettering.fill_box(left, top + 5, SWATCH, SWATCH, row.colour, rounding=5)
                lettering.write_text(left + SWATCH + 12, top + 22, row.name, TEXT)
                numbers = (row.area_text, row.share_text, row.border_text)
                for right, text, colour in zip(rights, numbers, (INK, FAINT, FAINT), strict=False):
                    lettering.write_text(right, top + 22, text, TEXT, colour, "right")
            if more and column == columns - 1:
                top = y + 8 + (lines - 1) * ROW
                area = _format_number(sum(row.area for row in rows[-more:]), self.decimals)
                lettering.write_text(left + SWATCH + 12, top + 22, f"and {more} more", TEXT, FAINT)
                lettering.write_text(rights[0], top + 22, area, TEXT, FAINT, "right")
        y += lines * ROW + 14 if lines else 0
        lettering.fill_box(x, y, self.width, 2, RULE)
        lettering.write_text(x, y + 26, "All clusters", TEXT)
        right = x + self.width if self.cards else self._locate_numbers(x)[0]
        lettering.write_text(
            right, y + 26, f"{self.tissue} mm²" if self.cards else self.tissue, TEXT, INK, "right"
        )
        for line, note in enumerate(self._notes, 1):
            lettering.write_text(x, y + 26 + line * ROW, note, TEXT, FAINT)

    @property
    def _notes(self) -> list[str]:
        absent = f"{self.absent} not on this slide" if self.absent else ""
        return [note for note in (self.step_text, absent) if note]

    def _locate_numbers(self, left: int) -> list[int]:
        """Locate the right edges of the numbers in a column of the table that begins at ``left``."""
        last = len(self.widths) - 1
        return [left + self.width - sum(self.widths[i + 1 :]) - 18 * (last - i) for i in range(last + 1)]


def _format_number(value: float, decimals: int) -> str:
    """Format a number with a fixed number of decimals; one that would be rounded to 0 as ``<0.01``."""
    least = 10.0**-decimals
    return f"<{least:.{decimals}f}" if 0 < value < least / 2 else f"{value:.{decimals}f}"
