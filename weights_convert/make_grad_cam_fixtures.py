"""Write Grad-CAM maps of ``pytorch_grad_cam``: ``python -m weights_convert.make_grad_cam_fixtures FOLDER``.

A fixture is for tests without torch. It holds a small network of timm's with random weights (``weights/KEY``,
under timm's names), images (``input``), the class to explain in each (``classes``) and the maps of every
layer (``METHOD/LAYER``, under our names); its metadata has our configuration. Needs torch, timm and grad-cam.
"""

import importlib
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import torch

from fseg_jax.encoders.architectures import config_to_json
from fseg_jax.encoders.efficientnet.network import EfficientNetConfig
from fseg_jax.encoders.resnet.network import ResNetConfig
from fseg_jax.files.tensor_writer import write_tensors
from weights_convert.make_fixtures import build_fixtures
from weights_convert.references import find_stages, get_published, randomise

# Grad-CAM++ is defined for maps after a ReLU: those of residual blocks, not of MBConv blocks.
NETWORKS = {
    "efficientnet_same": ("GradCAM",),
    "resnet_basic_classifier": ("GradCAM", "GradCAMPlusPlus"),
}
IMAGES = (2, 40, 48)  # number, rows, columns
# The library adds 1e-6 to the denominator of Grad-CAM++, which contains the squared gradient. Logits are
# scaled up so that the 1e-6 makes no difference.
LOGIT_SCALE = 100


def main(folder: Path) -> None:
    """Write every fixture into a folder."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    fixtures = build_fixtures()
    # grad-cam imports torchvision; its maps do not use it, and it has no build for CPUs alone.
    stand_ins = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    with patch.dict(sys.modules, {name: MagicMock() for name in stand_ins}):
        library: Any = importlib.import_module("pytorch_grad_cam")
        targets: Any = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    for seed, (name, methods) in enumerate(NETWORKS.items()):
        module, config, _, _ = fixtures[name]
        assert isinstance(config, EfficientNetConfig | ResNetConfig)
        network: Any = randomise(module, seed)
        classifier = network.get_classifier()
        with torch.no_grad():
            classifier.weight *= LOGIT_SCALE
        x = np.random.default_rng(seed).standard_normal((*IMAGES, 3)).astype(np.float16)
        images = torch.from_numpy(x).float().permute(0, 3, 1, 2)
        with torch.no_grad():
            order = module(images).argsort(1, descending=True).numpy()
        # The likeliest class of one image, the second likeliest of the other: at the last layers the maps of
        # most others are zero.
        classes = order[np.arange(len(x)), np.arange(len(x))].astype(np.int32)
        class_targets = [targets.ClassifierOutputTarget(int(index)) for index in classes]
        tensors = {f"weights/{key}": value for key, value in get_published(module).items()}
        tensors |= {"input": x, "classes": classes}
        for method in methods:
            for layer, submodule in find_stages(module).items():
                with getattr(library, method)(module, [submodule]) as cam:
                    maps = cam(images, class_targets)
                tensors[f"{method}/{layer}"] = maps[:, ::2, ::2]  # every other pixel, for the file's size
        write_tensors(folder / f"{name}.safetensors", tensors, {"config": config_to_json(config)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
