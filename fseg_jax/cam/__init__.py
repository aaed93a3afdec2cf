"""The CAM method (Storås 2021) on folders of images: masks from a few image-level labels.

The chain has four steps, each a command and a file: ``propagate_labels`` spreads labels, ``train_classifier``
learns them, ``segment_images`` makes masks, ``score_masks`` compares them with true ones. ``reproduce``
repeats the paper's runs through all four. ``methods.cam`` is the algorithm.
"""
