"""Which DICOM files are one slide: those of one series in one folder, whichever of them is named.

A scanner or an archive writes each level, the label and the overview to a file of its own, with or without
the suffix ``.dcm``; a folder may hold several series. Other files, such as annotations, are no slides.
"""

import os
import time
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fseg_jax.errors import InputError
from fseg_jax.files.paths import report_unreadable

_SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_DEFLATED = "1.2.840.10008.1.2.1.99"  # inflated whole by pydicom, however large; no slide is written so
_LAST_GROUP = 0x0048  # of the attributes that are read; those after it may be a list of all tiles
_RECENT = 2_000_000_000  # nanoseconds in which a folder may change and its time may not
_MAGIC_AT, _MAGIC = 128, b"DICM"
_FLUORESCENCE = "111743"  # the code of epifluorescence illumination


class Instance(NamedTuple):
    """A DICOM file of a slide.

    Attributes:
        file: Its path.
        uid: Its SOPInstanceUID.
        series: Its SeriesInstanceUID.
        flavour: ``VOLUME`` where it holds a level, ``LABEL``, ``OVERVIEW`` or ``THUMBNAIL``.
        shape: (height, width) of the level.
        tile: (height, width) of a tile.
        samples: Channels of a pixel.
        bits: Bits of a channel.
        planes: Focal planes.
        paths: Optical paths.
        is_fluorescence: Whether its light is that of fluorescence.
        compression: The name of its transfer syntax: ``JPEG-LS Lossless Image Compression`` …
    """

    file: Path
    uid: str
    series: str
    flavour: str
    shape: tuple[int, int]
    tile: tuple[int, int]
    samples: int
    bits: int
    planes: int
    paths: int
    is_fluorescence: bool
    compression: str


class DicomSeries(NamedTuple):
    """The DICOM files of a slide.

    Attributes:
        uid: Its SeriesInstanceUID.
        instances: Its files, by their SOPInstanceUIDs.
        is_alone: Whether its folder holds no other series.
    """

    uid: str
    instances: tuple[Instance, ...]
    is_alone: bool

    @property
    def main(self) -> Path:
        """The file of its largest level; its first file where it has no level."""
        return self.levels[0].file if self.levels else min(each.file for each in self.instances)

    @property
    def levels(self) -> list[Instance]:
        """The files that hold levels, the largest first."""
        volumes = [each for each in self.instances if each.flavour == "VOLUME"]
        return sorted(volumes, key=lambda each: (-each.shape[0] * each.shape[1], each.file))


def find_series(path: Path) -> DicomSeries | None:
    """Find the series that a folder holds, or that a file is of; None where it is no DICOM slide.

    Raises:
        InputError: The folder holds several series, or cannot be read.
    """
    if _is_folder(path):
        every = list_series(path)
        if len(every) > 1:
            raise InputError(
                f"{path}: holds {len(every)} DICOM slides (series): give a file of one, such as "
                f"{every[0].main.name}"
            )
        return every[0] if every else None
    instance = _read_instance(path)
    if instance is None:
        return None
    return next((each for each in list_series(path.parent) if each.uid == instance.series), None)


def list_series(folder: Path) -> list[DicomSeries]:
    """List the DICOM slides of which the files lie directly in a folder, by their first files.

    Raises:
        InputError: The folder cannot be read.
    """
    try:
        modified = folder.stat().st_mtime_ns
    except OSError as error:
        raise report_unreadable(folder, error) from None
    if time.time_ns() - modified < _RECENT:
        return _scan_folder(folder)
    return list(_scan_once(folder, str(Path.cwd()), modified))


@lru_cache(maxsize=256)
def _scan_once(folder: Path, working: str, modified: int) -> list[DicomSeries]:
    """List the DICOM slides in a folder, once for each time of it: one with thousands is asked for each."""
    return _scan_folder(folder)


def _scan_folder(folder: Path) -> list[DicomSeries]:
    try:
        with os.scandir(folder) as scan:
            names = sorted(entry.name for entry in scan if entry.name[0] != "." and _may_be_dicom(entry.name))
    except OSError as error:
        raise report_unreadable(folder, error) from None
    by_series: dict[str, list[Instance]] = {}
    for name in names:
        if instance := _read_instance(folder / name):
            by_series.setdefault(instance.series, []).append(instance)
    return [
        DicomSeries(uid, tuple(sorted(instances, key=lambda each: each.uid)), len(by_series) == 1)
        for uid, instances in by_series.items()
    ]


def name_series(path: Path) -> str | None:
    """Name the slide of a DICOM file, or of a folder of them; None where it is no DICOM slide.

    A folder gives its name. A file gives its own where it is its whole series, or else its folder's, or the
    SeriesInstanceUID where that holds other series.
    """
    try:
        series = find_series(path)
    except InputError:
        return path.resolve().name if _is_folder(path) else None
    if series is None:
        return None
    if _is_folder(path):
        return path.resolve().name
    if len(series.instances) == 1:
        return path.stem if path.suffix.lower() in (".dcm", ".dicom") else path.name
    return path.resolve().parent.name if series.is_alone else series.uid


def list_slides(folder: Path) -> list[Path]:
    """List the DICOM slides in a folder: itself where it holds one, or else a file of each."""
    every = list_series(folder)
    return [folder] if len(every) == 1 else [series.main for series in every]


def merge_series(paths: Iterable[Path]) -> list[Path]:
    """Return paths, a DICOM slide once: as its folder, or the file of its largest level, or the first."""
    merged: list[Path] = []
    places: dict[tuple[Path, str], int] = {}
    for path in paths:
        key = key_series(path)
        if key is None or key not in places:
            merged.append(path)
            if key is not None:
                places[key] = len(merged) - 1
        elif not _is_folder(merged[places[key]]) and _is_main(path):
            merged[places[key]] = path
    return merged


def key_series(path: Path) -> tuple[Path, str] | None:
    """Return what all paths of a DICOM slide have in common; None where it is none, or cannot be told."""
    if not _is_folder(path):
        instance = _read_instance(path)
        return (path.resolve().parent, instance.series) if instance else None
    try:
        series = find_series(path)
    except InputError:
        return None
    return (path.resolve(), series.uid) if series else None


def _is_main(path: Path) -> bool:
    series = find_series(path)
    return series is not None and (_is_folder(path) or path.name == series.main.name)


def is_other_object(path: Path) -> bool:
    """Return whether a file is of DICOM and no slide: an annotation, a segmentation, a tomogram."""
    return _may_be_dicom(path.name) and _read_class(path) not in (None, _SLIDE_CLASS)


def _is_folder(path: Path) -> bool:
    """Return whether a folder is at a path; a path that cannot be looked at is left to other readers."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _may_be_dicom(name: str) -> bool:
    """Return whether a name can be that of a DICOM file: .dcm, no suffix, or a UID."""
    suffix = Path(name).suffix
    return suffix.lower() in ("", ".dcm", ".dicom") or suffix[1:].isdigit()


def _read_class(path: Path) -> str | None:
    """Read what kind of object a DICOM file holds, its SOP class; None where it is no DICOM file."""
    try:
        with path.open("rb") as file:
            if file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] != _MAGIC:
                return None
        from pydicom.filereader import read_file_meta_info

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that are not as the standard wants them
            meta = read_file_meta_info(path)
            deflated = meta.get("TransferSyntaxUID") == _DEFLATED
            return None if deflated else str(meta.get("MediaStorageSOPClassUID", "")) or None
    except Exception:  # damaged files raise anything at all
        return None


def _read_instance(path: Path) -> Instance | None:
    """Read the header of a DICOM file; None where it is no file of a slide."""
    if not _may_be_dicom(path.name):
        return None
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return _parse_instance(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _parse_instance(path: Path, size: int, modified: int) -> Instance | None:
    """Read the header of a DICOM file, once for each size and time of it."""
    if _read_class(path) != _SLIDE_CLASS:
        return None
    from pydicom.filereader import read_partial

    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            header = read_partial(file, stop_when=lambda tag, vr, length: tag >> 16 > _LAST_GROUP)
            kind = list(header.ImageType)
            light = [
                str(code.CodeValue)
                for each in header.get("OpticalPathSequence", ())
                for code in each.get("IlluminationTypeCodeSequence", ())
            ]
            return Instance(
                path,
                str(header.SOPInstanceUID),
                str(header.SeriesInstanceUID),
                str(kind[2]).upper() if len(kind) > 2 else "VOLUME",
                (int(header.TotalPixelMatrixRows), int(header.TotalPixelMatrixColumns)),
                (int(header.Rows), int(header.Columns)),
                int(header.SamplesPerPixel),
                int(header.BitsAllocated),
                int(header.get("TotalPixelMatrixFocalPlanes", 1) or 1),
                int(header.get("NumberOfOpticalPaths", 1) or 1),
                _FLUORESCENCE in light,
                str(header.file_meta.TransferSyntaxUID.name),
            )
    except Exception:  # damaged files raise anything at all
        return None
