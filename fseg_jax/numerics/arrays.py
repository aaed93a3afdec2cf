"""The conventions for arrays, and jaxtyping names for them.

- Images are ``uint8 (…, height, width, 3)``, RGB.
- Features are ``float (…, h, w, c)`` and non-negative: the encoder's grid, one token every ``stride`` pixels.
- ``A (…, n, c)`` is a grid of features as a matrix, one row a token: ``n = h · w``.
- ``A ≈ W · H`` with contributions ``W (…, n, k)`` and concepts ``H (…, k, c)``.
- Centres are ``(k, c)``: the rows of a codebook, and H itself in mode "fixed".
- Labels are unsigned ints ``(…, height, width)``: 0 is background, clusters are 1…k.

Numeric functions take leading batch axes. Random functions take a ``key``. Algorithms return a NamedTuple
that says whether they converged. Shapes are static and the last batch is padded, so that nothing recompiles.
"""

from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt, UInt8

Images = UInt8[Array, "*batch height width 3"]
Features = Float[Array, "*batch h w c"]
Tokens = Float[Array, "*batch n c"]
Weights = Float[Array, "*batch n k"]
Concepts = Float[Array, "*batch k c"]
Centers = Float[Array, "k c"]
Labels = UInt[Array, "*batch height width"]
Key = PRNGKeyArray

__all__ = [
    "Array",
    "Centers",
    "Concepts",
    "Features",
    "Float",
    "Images",
    "Int",
    "Key",
    "Labels",
    "Tokens",
    "UInt",
    "UInt8",
    "Weights",
]
