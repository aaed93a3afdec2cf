"""k-means: in memory (``lloyd.py``), and larger than memory over any number of devices (``streaming.py``)."""

from fseg_jax.numerics.kmeans.lloyd import KMeansResult, fit
from fseg_jax.numerics.kmeans.seeding import plus_plus

__all__ = ["KMeansResult", "fit", "plus_plus"]
