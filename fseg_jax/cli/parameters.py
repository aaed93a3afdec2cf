"""The kinds of values that options take: numbers of a range, shards, and lists of any of them."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click


class Number(click.ParamType[float]):
    """A number from ``least`` to ``most``, both included unless ``above`` or ``below`` leaves one out."""

    name = "number"

    def __init__(self, least: float, most: float, *, above: bool = False, below: bool = False) -> None:
        self._least, self._most, self._above, self._below = least, most, above, below

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number; text that is none, "nan" and numbers out of the range are mistakes."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        is_large = number > self._least if self._above else number >= self._least
        is_small = number < self._most if self._below else number <= self._most
        if not (is_large and is_small):
            first = f"{'above' if self._above else 'from'} {self._least:g}"
            last = f"{'below ' if self._below else ''}{self._most:g}"
            self.fail(f"{str(value)[:40]!r}: give a number {first} to {last}", param, ctx)
        return number


class WholeNumber(click.ParamType[int]):
    """A whole number from ``least`` to ``most``, both included."""

    name = "number"

    def __init__(self, least: int, most: int = 10**9) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a whole number; text that is none and numbers out of the range are mistakes."""
        try:
            number = int(value)
        except ValueError:
            number = self._least - 1
        if not self._least <= number <= self._most:
            range_ = f"{self._least} or more" if self._most == 10**9 else f"{self._least} to {self._most}"
            self.fail(f"{str(value)[:40]!r}: give a whole number, {range_}", param, ctx)
        return number


class SlidePath(click.ParamType[Path]):
    """A slide's file or folder, or its address."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Read a path or an address; one that holds a password is a mistake."""
        from fseg_jax.files.addresses import locate

        return locate(value)


class Shard(click.ParamType[tuple[int, int]]):
    """A share of the slides, ``i/n``: every n-th slide from the i-th on, counted from 0."""

    name = "i/n"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Read ``i/n`` as two numbers, i below n."""
        i, _, n = str(value).partition("/")
        if not (i.isdecimal() and n.isdecimal() and len(n) <= 9 and len(i) <= 9 and int(i) < int(n)):
            advice = "give i/n, counted from 0: 0/4, 1/4, 2/4 and 3/4 are all of four"
            self.fail(f"{str(value)[:40]}: {advice}", param, ctx)
        return int(i), int(n)


class ListCommand(click.Command):
    """A command with options that take lists: ``--k 16,32``, ``--k 16 --k 32`` or ``--k 16 32``.

    Every option with ``multiple=True`` is one. In the last spelling the list may stand before the command's
    own arguments (``--k 16 32 slides.csv``): it ends at the next option, or where an argument is still
    missing at the first word that is no value of the option.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option's name before each value of its list, which is click's own spelling."""
        spans = _split_at_options(args, self.params)
        missing = sum(abs(p.nargs) for p in self.params if isinstance(p, click.Argument))
        missing -= sum(len(span.words) for span in spans if not span.is_list)
        spelled: list[str] = []
        for span in spans:
            if span.option is None or not span.is_list:
                spelled += [*span.head, *span.words]
                continue
            end = len(span.words)
            if missing > 0:
                end = next((i for i in range(1, end) if not _is_value(span.words[i], span.option, ctx)), end)
                missing -= len(span.words) - end
            items = [item for word in span.words[:end] for item in _split_at_commas(word, span.option)]
            spelled += [word for item in items for word in (*span.head, item)] or span.head
            spelled += span.words[end:]
        return super().parse_args(ctx, spelled)


class _Span(NamedTuple):
    """A part of a command line: an option, or nothing, and the words up to the next option."""

    option: click.Option | None
    head: list[str]  # the option's name; with its values, unless it takes a list
    words: list[str]  # what follows: values of a list, or the command's arguments

    @property
    def is_list(self) -> bool:
        return self.option is not None and self.option.multiple


def _split_at_options(args: Sequence[str], params: Sequence[click.Parameter]) -> list[_Span]:
    options = {name: p for p in params if isinstance(p, click.Option) for name in p.opts}
    spans = [_Span(None, [], [])]
    pending = 0  # values that the last option takes, whatever they look like
    for i, word in enumerate(args):
        if pending:
            (spans[-1].words if spans[-1].is_list else spans[-1].head).append(word)
            pending -= 1
        elif word == "--":  # only arguments follow
            return [*spans, _Span(None, ["--"], list(args[i + 1 :]))]
        elif word.startswith("-") and word != "-":
            name, equals, value = word.partition("=")
            option = options.get(name)
            if option is not None and option.multiple and equals:
                spans.append(_Span(option, [name], [value]))
            else:
                spans.append(_Span(option, [word], []))
                pending = 0 if option is None or equals or option.is_flag or option.count else option.nargs
        else:
            spans[-1].words.append(word)
    return spans


def _is_value(word: str, option: click.Option, ctx: click.Context) -> bool:
    """Whether a word may be one of an option's values: it converts, or, where any text does, is no folder."""
    if _is_text(option):
        return not os.path.isdir(word)  # noqa: PTH112, which raises nothing, however long the word
    try:
        for item in _split_at_commas(word, option):
            option.type.convert(item, option, ctx)
    except click.BadParameter:
        return False
    return True


def _is_text(option: click.Option) -> bool:
    return isinstance(option.type, click.types.StringParamType | click.Path)


def _split_at_commas(word: str, option: click.Option) -> list[str]:
    """Split ``16,32`` into its items; the name of a file that has a comma stays whole."""
    file = word.partition("=")[2]  # of NAME=FILE
    if _is_text(option) and (os.path.exists(word) or os.path.exists(file)):  # noqa: PTH110, as above
        return [word]
    return [item for part in word.split(",") if (item := part.strip())] or [word]
