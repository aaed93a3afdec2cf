"""Units of length as files spell them, in µm."""

_UM = {
    "m": 1e6, "meter": 1e6,
    "cm": 1e4, "centimeter": 1e4,
    "mm": 1e3, "millimeter": 1e3,
    "µm": 1.0, "um": 1.0, "micrometer": 1.0, "micron": 1.0,
    "nm": 1e-3, "nanometer": 1e-3,
    "å": 1e-4, "angstrom": 1e-4,
    "in": 25400.0, "inch": 25400.0, "inches": 25400.0,
}  # fmt: skip
# The micro sign as a Greek mu, escaped as ImageJ does, and in UTF-8 that was taken for Latin-1; so for Å.
_SPELLINGS = (("μ", "µ"), ("\\u00b5", "µ"), ("âµ", "µ"), ("\u212b", "å"))


def convert_to_um(unit: str) -> float | None:
    """Return how many µm a unit of length is; None for what is no such unit, as pixels."""
    text = unit.strip()
    text = text.lower().replace("metre", "meter") if len(text) > 2 else text.replace("Å", "å")
    for spelling, letter in _SPELLINGS:
        text = text.replace(spelling, letter)
    return _UM.get(text, _UM.get(text.removesuffix("s")))
