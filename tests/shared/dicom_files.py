"""DICOM slides as scanners and archives write them: a series of levels, each a file of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    generate_uid,
)

SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
ENCODERS: dict[UID, Callable[[np.ndarray], bytes]] = {
    JPEGBaseline8Bit: lambda tile: imagecodecs.jpeg8_encode(tile, level=95, subsampling="444"),
    JPEG2000Lossless: lambda tile: imagecodecs.jpeg2k_encode(
        tile, codecformat="j2k", reversible=True, level=0
    ),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    HTJ2KLossless: lambda tile: imagecodecs.htj2k_encode(tile),
    ExplicitVRLittleEndian: lambda tile: tile.tobytes(),
}


def write_series(
    folder: Path,
    levels: Sequence[np.ndarray],
    *,
    mpp: float = 0.5,
    syntax: UID = JPEGBaseline8Bit,
    label: bool = False,
    name: str = "level",
    suffix: str = ".dcm",
    tile: int = 64,
    light: str = "111744",
    **tags: object,
) -> str:
    """Write a series of levels, ``uint8 (h, w)`` or ``(h, w, 3)``, to ``NAME-0.dcm`` …; return its UID.

    Args:
        folder: Where to.
        levels: The levels' pixels, finest first.
        mpp: µm per pixel of the first.
        syntax: How tiles are compressed: one of ``ENCODERS``.
        label: Whether the series has a label too, a file ``NAME-label.dcm``.
        name: What the files' names begin with.
        suffix: What they end with.
        tile: Pixels of a tile's side.
        light: The code of the light: brightfield, or 111743, epifluorescence.
        **tags: DICOM attributes of each level that replace those written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series, frame = generate_uid(), generate_uid()
    for number, pixels in enumerate(levels):
        kind = (
            ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
            if number
            else ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        )
        spacing = mpp * levels[0].shape[0] / pixels.shape[0]
        dataset = _describe(pixels, kind, spacing, series, frame, tile)
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = light, "DCM", "light"
        dataset.OpticalPathSequence[0].IlluminationTypeCodeSequence = Items([code])
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        _save(dataset, _cut(pixels, tile), syntax, folder / f"{name}-{number}{suffix}")
    if label:
        pixels = np.full((50, 50, 3), (200, 30, 30), np.uint8)
        dataset = _describe(pixels, ["ORIGINAL", "PRIMARY", "LABEL", "NONE"], 50.0, series, frame, 50)
        _save(dataset, [pixels], syntax, folder / f"{name}-label{suffix}")
    return str(series)


def _cut(pixels: np.ndarray, tile: int) -> list[np.ndarray]:
    """Cut a level into tiles, white past its edges."""
    pad = [(0, -pixels.shape[0] % tile), (0, -pixels.shape[1] % tile), (0, 0)][: pixels.ndim]
    padded = np.pad(pixels, pad, constant_values=255)
    return [
        np.ascontiguousarray(padded[y : y + tile, x : x + tile])
        for y in range(0, pixels.shape[0], tile)
        for x in range(0, pixels.shape[1], tile)
    ]


def _describe(pixels: np.ndarray, kind: list[str], mpp: float, series: UID, frame: UID, tile: int) -> Dataset:
    height, width = pixels.shape[:2]
    colour = pixels.ndim == 3
    dataset = Dataset()
    dataset.SOPClassUID = SLIDE_CLASS
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = frame  # any UID does, and one for all levels
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = series, frame
    dataset.Modality = "SM"
    dataset.PatientName, dataset.PatientID = "A^B", "1"
    dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = (
        dataset.ReferringPhysicianName
    ) = ""
    dataset.StudyDate = dataset.ContentDate = "20200101"
    dataset.StudyTime = dataset.ContentTime = "000000"
    dataset.AcquisitionDateTime = "20200101000000"
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "1", 1, 1
    dataset.Manufacturer = dataset.ManufacturerModelName = "X"
    dataset.DeviceSerialNumber = dataset.SoftwareVersions = "1"
    dataset.ImageType = kind
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    else:
        dataset.PresentationLUTShape, dataset.RescaleIntercept, dataset.RescaleSlope = "IDENTITY", 0, 1
    dataset.Rows = dataset.Columns = tile
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
    dataset.NumberOfFrames = -(-height // tile) * -(-width // tile)
    dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = width, height
    dataset.TotalPixelMatrixFocalPlanes = dataset.NumberOfOpticalPaths = 1
    dataset.DimensionOrganizationType = "TILED_FULL"
    dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight = width * mpp / 1000, height * mpp / 1000
    dataset.ImagedVolumeDepth = 0.001
    dataset.SpecimenLabelInImage = dataset.BurnedInAnnotation = dataset.ExtendedDepthOfField = "NO"
    dataset.FocusMethod, dataset.VolumetricProperties, dataset.LossyImageCompression = "AUTO", "VOLUME", "00"
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    shared = Dataset()
    shared.PixelMeasuresSequence = Items([measures])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    dataset.TotalPixelMatrixOriginSequence = Items([origin])
    dataset.ImageOrientationSlide = [0, 1, 0, 1, 0, 0]
    path = Dataset()
    path.OpticalPathIdentifier, path.ObjectiveLensPower = "0", "20"
    dataset.OpticalPathSequence = Items([path])
    return dataset


def _save(dataset: Dataset, tiles: list[np.ndarray], syntax: UID, path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    dataset.file_meta = meta
    if syntax == JPEGBaseline8Bit and dataset.SamplesPerPixel == 3:
        dataset.PhotometricInterpretation = "YBR_FULL_422"
    encoded = [ENCODERS[syntax](tile) for tile in tiles]
    if syntax == ExplicitVRLittleEndian:
        dataset.PixelData = b"".join(encoded)
        dataset["PixelData"].VR = "OB" if tiles[0].dtype == np.uint8 else "OW"
    else:
        dataset.PixelData = encapsulate(encoded, has_bot=True)
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.save_as(path, enforce_file_format=True)
