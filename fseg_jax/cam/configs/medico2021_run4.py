"""Medico 2021, run 4 (Storås 2021, §2): 250 clusters, layer 20, thresholds above 0.28.

On 100 + 100 labelled images, and unlabelled ones:

    fseg cam reproduce DATASET -o OUT --run 4 --negatives FOLDER --unlabelled FOLDER
"""

from fseg_jax.cam.runs import Run

RUN = Run(name="4", source="images", k=250, layer="blocks.20", lower=0.28, upper=None)
