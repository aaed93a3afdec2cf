"""Medico 2021, run 1 (Storås 2021, §2): 50 clusters, layer 14, thresholds from 0.4 to 0.7.

On tiles of the development images, 100 + 100 of them labelled by their masks:

    fseg cam reproduce DATASET -o OUT --run 1
"""

from fseg_jax.cam.runs import Run

RUN = Run(name="1", source="tiles", k=50, layer="blocks.14", lower=0.4, upper=0.7)
