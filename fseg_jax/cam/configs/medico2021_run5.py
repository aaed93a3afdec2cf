"""Medico 2021, run 5 (Storås 2021, §2): 250 clusters, layer 22, thresholds above 0.28.

On 100 + 100 labelled images, and unlabelled ones:

    fseg cam reproduce DATASET -o OUT --run 5 --negatives FOLDER --unlabelled FOLDER
"""

from fseg_jax.cam.runs import Run

RUN = Run(name="5", source="images", k=250, layer="blocks.22", lower=0.28, upper=None)
