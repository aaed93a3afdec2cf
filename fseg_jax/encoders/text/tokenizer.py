"""From prompts to tokens, by the tokenizer that a model was published with.

The package tokenizers reads it: WordPiece for BERT, byte pairs for CONCH.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from fseg_jax.encoders.text.network import PADDING, TextConfig
from fseg_jax.errors import InputError, first_line

# Vocabularies of pathology have these as one token; BERT's own, which is as large as KEEP's, has pieces.
_WHOLE_WORDS = ("Lymphoma", "Nephropathy")
_LARGEST_FILE = 100_000_000  # bytes
_MULTIPLE = 16  # of the tokens of a batch


class Tokenizer:
    """The tokenizer of a text tower."""

    def __init__(self, path: Path, config: TextConfig, longest: int, name: str):
        """Read a tokenizer.

        Args:
            path: its file: ``tokenizer.json`` or another of this form, or the ``vocab.txt`` of a BERT.
            config: the text tower's configuration.
            longest: tokens of a text at most, its start and end included.
            name: the model's name, for errors.

        Raises:
            InputError: the package is missing, or the file is none, damaged, or another model's.
        """
        self._tokenizer = _read(path, name)
        self._config, self._longest, self._name = config, longest, name
        size = self._tokenizer.get_vocab_size()
        if size != config.vocabulary:
            raise InputError(
                f"{path}: a tokenizer of {size} tokens, and {name}'s has {config.vocabulary}: "
                f"give the tokenizer that {name} was published with"
            )
        if not all(len(self._tokenizer.encode(word).ids) == 3 for word in _WHOLE_WORDS):
            raise InputError(
                f"{path}: cuts words of pathology in pieces, which {name}'s does not: "
                f"give the tokenizer that {name} was published with"
            )

    def encode(self, prompts: Sequence[str]) -> Int[np.ndarray, "b n"]:
        """Turn prompts into tokens, with padding behind.

        Raises:
            InputError: a prompt is too long, or has a letter that the tokenizer does not know.
        """
        rows = [self._tokenizer.encode(prompt) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row.ids) > self._longest:
                raise InputError(
                    f"the prompt {prompt[:40]!r}… has {len(row.ids)} tokens, and {self._name} reads "
                    f"{self._longest}: shorten it"
                )
            if "[UNK]" in row.tokens:
                raise InputError(
                    f"the prompt {prompt[:80]!r} has a letter that {self._name} does not know: "
                    "write it in plain English"
                )
        if self._config.kind == "coca":  # its class token stands at the last position, however short a text
            width = self._config.positions - 1
        else:
            width = -(-max(len(row.ids) for row in rows) // _MULTIPLE) * _MULTIPLE
        tokens = np.full((len(rows), width), PADDING, np.int32)
        for place, row in zip(tokens, rows, strict=True):
            place[: len(row.ids)] = row.ids
        return tokens


def _read(path: Path, name: str) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise InputError(
            f"the words of {name} need the package tokenizers: pip install 'fseg-jax[words]'"
        ) from None
    advice = f"give {name}'s tokenizer.json or vocab.txt"
    if not path.is_file():
        raise InputError(f"{path}: no such file: {advice}")
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError("it is too large")
        if path.suffix != ".txt":
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
        return tokenizers.BertWordPieceTokenizer(str(path), lowercase=True)
    except Exception as error:  # the package raises plain exceptions
        raise InputError(f"{path}: not a tokenizer ({first_line(error)[:100]}): {advice}") from error
