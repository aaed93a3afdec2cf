"""Channels that are stored one by one, as fluorescence is: which of them are red, green and blue."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fseg_jax.errors import InputError
from fseg_jax.process import warn_once

_NAMES = (("red", "r"), ("green", "g"), ("blue", "b"))
_ALPHA_NAMES = ("alpha", "a")
_COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
_LISTED = 12  # names in a message


class Channel(NamedTuple):
    """A channel, as a file describes it.

    Attributes:
        name: Its name; empty where there is none.
        colour: The RGB that it is shown in; None where there is none.
        is_fluorescence: Whether the file says that it is fluorescence.
    """

    name: str = ""
    colour: tuple[int, int, int] | None = None
    is_fluorescence: bool = False


def choose_rgb(path: Path, channels: Sequence[Channel]) -> tuple[int, ...]:
    """Choose the channels that are grey (one), red, green and blue (three), or these and alpha (four).

    Three channels count as red, green and blue by their names or colours, in whatever order; a warning is
    logged where neither says so, and they are taken in the file's order.

    Args:
        path: The file, for messages.
        channels: All of its channels, described or not.

    Raises:
        InputError: The channels are no picture.
    """
    count = len(channels)
    names = [channel.name.strip().lower() for channel in channels]
    if not any(channel.is_fluorescence for channel in channels):
        if count == 1:
            return (0,)
        if count in (3, 4):
            order = _find_each([[i for i, name in enumerate(names) if name in own] for own in _NAMES])
            if order is not None and count == 3:
                return order
            if order is not None and names[6 - sum(order)] in _ALPHA_NAMES:
                return (*order, 6 - sum(order))
        if count == 3:
            colours = [channel.colour for channel in channels]
            order = _find_each([[i for i, colour in enumerate(colours) if colour == own] for own in _COLOURS])
            if order is None:
                warn_once(
                    f"{path}: its three channels ({_list_names(channels)}) are not named or coloured red, "
                    "green and blue; they are taken for these"
                )
            return order or (0, 1, 2)
    raise InputError(
        f"{path}: an 8-bit picture, RGB or grey, is required, and it has "
        f"{count} channel{'s' * (count > 1)} ({_list_names(channels)}), as fluorescence has; "
        "give a brightfield picture of stained tissue"
    )


def _find_each(places: list[list[int]]) -> tuple[int, ...] | None:
    return tuple(place[0] for place in places) if all(len(place) == 1 for place in places) else None


def _list_names(channels: Sequence[Channel]) -> str:
    if not any(channel.name for channel in channels):
        return "without names"
    listed = ", ".join(channel.name or "no name" for channel in channels[:_LISTED])
    return listed + ", …" * (len(channels) > _LISTED)
