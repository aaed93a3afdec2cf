"""Medico 2021, run 2 (Storås 2021, §2): 200 clusters, layer 13, thresholds from 0.4 to 0.7.

On 100 + 100 labelled images, and unlabelled ones:

    fseg cam reproduce DATASET -o OUT --run 2 --negatives FOLDER --unlabelled FOLDER
"""

from fseg_jax.cam.runs import Run

RUN = Run(name="2", source="images", k=200, layer="blocks.13", lower=0.4, upper=0.7)
