"""Names for clusters, and how each is put in words, in a CSV file: ``name,prompt``."""

import re
from dataclasses import dataclass
from pathlib import Path

from fseg_jax.errors import InputError
from fseg_jax.outputs.cluster_names import check_name
from fseg_jax.outputs.csv_table import parse_table, read_table

# How a name without a prompt is put in words, as the models' authors do.
TEMPLATES = (
    "{}.",
    "an H&E image of {}.",
    "an H&E stained image showing {}.",
    "a histopathological image of {}.",
    "{} is present.",
)
_COLUMNS = ("name", "prompt")
_WANTED = "prompts are CSV with the columns name and, if wanted, prompt"
_LONGEST_NAME = 190  # letters: of clusters', less room for a number
_DEFAULT = re.compile(r"cluster \d+")


@dataclass(frozen=True)
class Prompts:
    """How names are put in words.

    Attributes:
        source: Where they are from.
        of_name: The prompts of each name, in the order of the file.
    """

    source: str
    of_name: dict[str, tuple[str, ...]]


def load_prompts(path: str | Path) -> Prompts:
    """Read a file of prompts: a line a prompt, as many of a name as there are words for it.

    A name without a prompt gets those of ``TEMPLATES``.

    Raises:
        InputError: The file cannot be read, is no CSV in UTF-8 with the column ``name``, or has fewer than
            two names; or a name cannot be a cluster's, or two lines have the same prompt.
    """
    return parse_prompts(read_table(path, _WANTED), str(path))


def parse_prompts(content: bytes, source: str) -> Prompts:
    """Parse the content of a file of prompts; ``source`` is where it is from, for errors."""
    of_name: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    for line, row in parse_table(content, source, _COLUMNS, 1, _WANTED):
        where = f"{source}: line {line}"
        name = check_name(row["name"], where)
        if _DEFAULT.fullmatch(name):
            raise InputError(f"{where}: {name!r} is what clusters without a name are called; choose another")
        if len(name) > _LONGEST_NAME:
            raise InputError(f"{where}: a name of {len(name)} letters; {_LONGEST_NAME} at most")
        prompt = " ".join(row.get("prompt", "").split())
        for text in (prompt,) if prompt else (template.format(name) for template in TEMPLATES):
            if (before := lines.setdefault(text.lower(), line)) != line:
                raise InputError(f"{where}: the prompt {text[:80]!r} is also that of line {before}; keep one")
            of_name.setdefault(name, []).append(text)
    if len(of_name) < 2:
        known = f"only the name {next(iter(of_name))!r}" if of_name else "no names, only a header"
        raise InputError(
            f"{source}: {known}: give at least two, all that a cluster may be, also glass and artefacts"
        )
    return Prompts(source, {name: tuple(texts) for name, texts in of_name.items()})
