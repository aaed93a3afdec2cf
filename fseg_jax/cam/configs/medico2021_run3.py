"""Medico 2021, run 3 (Storås 2021, §2): 200 clusters, layer 14, thresholds from 0.4 to 0.7.

On 100 + 100 labelled images, and unlabelled ones:

    fseg cam reproduce DATASET -o OUT --run 3 --negatives FOLDER --unlabelled FOLDER
"""

from fseg_jax.cam.runs import Run

RUN = Run(name="3", source="images", k=200, layer="blocks.14", lower=0.4, upper=0.7)
