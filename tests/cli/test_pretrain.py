"""The slides that ``fseg pretrain`` draws from."""

from pathlib import Path

import numpy as np
import tifffile

from fseg_jax.cli.pretrain import _list_fields
from fseg_jax.pretraining.fields import Geometry


def test_another_image_of_the_file_than_the_largest(tmp_path: Path) -> None:
    """A manifest's own column goes before the option."""
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        for height in (140, 160):
            size = {f"PhysicalSize{axis}": 0.5 for axis in "XY"}
            writer.write(np.full((height, 180, 3), 200, np.uint8), photometric="rgb", metadata=size)
    (tmp_path / "a.csv").write_text("slide_id,path,series\na,a.ome.tif,1\nb,a.ome.tif,\n")
    geometry = Geometry(side=64, finest=0.5, coarsest=1.0, regions=3)
    fields = _list_fields((str(tmp_path / "a.csv"),), geometry, None, 0, 5, 0)
    assert [field.pixels.shape[0] for field in fields] == [160, 140]
