"""Help with wrong input: say what kind of file was given, and suggest names near a wrong one."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from fseg_jax.files.tensor_reader import BrokenFileError, read_header

CODEBOOK = "fseg-jax-codebook"  # the value of "format" in the metadata of our files
ENCODER = "fseg-jax-encoder"
PRETRAINING = "fseg-jax-pretraining-1"

_SLIDE_SUFFIXES = {".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"}
_MAGIC = (  # first bytes of a file
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"II+\0", "a TIFF image"),
    (b"MM\0+", "a TIFF image"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GIF8", "a GIF image"),
    (b"8BPS", "a Photoshop image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"II\xbc", "a JPEG XR image"),
    (b"ZISRAWFILE", "a CZI file of Zeiss"),
    (b"SIS\0", "an ETS file of Olympus"),
    (b"\xda\xce\xbe\x0a", "an ND2 file of Nikon"),
    (b"\x70\0\0\0", "a LIF file of Leica"),
    (b"PK\x03\x04", "a zip archive, as PyTorch writes"),
    (b"\x80", "a pickle, as joblib and PyTorch write"),
    (b"%PDF", "a PDF"),
    (b'<DataObject ObjectType="DPUfsImport"', "an iSyntax file of Philips"),
    (b"<", "an HTML or XML file"),
    (b"{", "a JSON file"),
    (b"[", "a JSON file"),
)


def describe_kind(path: str | Path) -> str:
    """Describe a file as a noun with its article, such as ``a codebook`` or ``a slide``; never raise."""
    path = Path(path)
    try:
        if path.is_dir():
            zarr = any((path / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup"))
            return "a Zarr folder" if zarr else "a folder"
        with path.open("rb") as file:
            head = file.read(132)
    except (OSError, ValueError):
        return "no file that can be read"
    if not head:
        return "an empty file"
    if path.suffix.lower() in _SLIDE_SUFFIXES:
        return "a slide"
    try:
        return _describe_tensors(read_header(path).metadata)
    except (BrokenFileError, OSError):
        pass
    if kind := describe_head(head):
        return kind
    if path.suffix == ".safetensors":
        return "a damaged file of tensors"
    return "a text file" if is_text(head) else "a file of another kind"


def describe_head(head: bytes) -> str:
    """Describe a file by its first 132 bytes, as a noun with its article; return an empty text if unknown."""
    if head[128:] == b"DICM":
        return "a DICOM file"
    if head[4:8] == b"ftyp":
        return "a HEIC or AVIF image"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")


def _describe_tensors(metadata: dict[str, str]) -> str:
    file_format = metadata.get("format")
    if file_format == CODEBOOK:
        return "a codebook"
    if file_format == PRETRAINING:
        return "the checkpoint of an fseg pretrain that has not ended (run it again, and it goes on)"
    if file_format == ENCODER:
        if "classifier" in metadata:
            return "a classifier of fseg cam train"
        name = metadata.get("name", "")[:80]
        return f"the encoder {name!r} of fseg pretrain" if "card" in metadata else f"the weights of {name!r}"
    if {"fingerprint", "epoch", "best"} <= metadata.keys():
        return "the state of an fseg cam train that has not ended (run it again, and it goes on)"
    return "a safetensors file of another program"


def is_written_here(path: str | Path) -> bool:
    """Return whether this program wrote a file, of tensors of any kind."""
    try:
        return not _describe_tensors(read_header(path).metadata).endswith("another program")
    except (BrokenFileError, OSError):
        return False


def is_text(head: bytes) -> bool:
    """Return whether a file that begins so is text."""
    try:
        head[: head.rfind(b"\n") + 1 or None].decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def suggest_names(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """Suggest up to three known names that are like an unknown one; return an empty text if none is.

    ``likeness`` is the least of ``difflib``'s ratio, from 0 to 1.

    >>> suggest_names("resnet5", ["uni", "resnet50"])
    'did you mean resnet50? '
    """
    by_key = {str(candidate).lower().replace("_", "-"): str(candidate) for candidate in known}
    key = name.lower().replace("_", "-")
    near = difflib.get_close_matches(key, by_key, n=3, cutoff=likeness)
    if not near and len(key) > 2:
        near = [other for other in by_key if other.startswith(key) or key.startswith(other)][:3]
    return f"did you mean {' or '.join(by_key[other] for other in near)}? " if near else ""
