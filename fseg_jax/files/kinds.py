"""What kind of file a user gave where another kind was wanted, and what there is in place of a wrong name."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from fseg_jax.files.tensor_header import BrokenFileError, read_header

CODEBOOK = "fseg-jax-codebook"  # what the metadata of our files call their format
ENCODER = "fseg-jax-encoder"
PRETRAINING = "fseg-jax-pretraining-1"

_SLIDES = {".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi"}
_BEGINNINGS = (
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"II+\0", "a TIFF image"),
    (b"MM\0+", "a TIFF image"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PK\x03\x04", "a zip archive, as PyTorch writes"),
    (b"\x80", "a pickle, as joblib and PyTorch write"),
    (b"%PDF", "a PDF"),
    (b"<", "an HTML or XML file"),
    (b"{", "a JSON file"),
    (b"[", "a JSON file"),
)


def describe_kind(path: str | Path) -> str:
    """Say what a file is, as a noun with its article: ``a codebook``, ``a slide``; never raises."""
    path = Path(path)
    try:
        if path.is_dir():
            zarr = any((path / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup"))
            return "a Zarr folder" if zarr else "a folder"
        with path.open("rb") as file:
            head = file.read(64)
    except (OSError, ValueError):
        return "no file that can be read"
    if not head:
        return "an empty file"
    if path.suffix.lower() in _SLIDES:
        return "a slide"
    try:
        return _kind_of_tensors(read_header(path).metadata)
    except (BrokenFileError, OSError):
        pass
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if path.suffix == ".safetensors":
        return "a damaged file of tensors"
    return "a text file" if _is_text(head) else "a file of another kind"


def _kind_of_tensors(metadata: dict[str, str]) -> str:
    form = metadata.get("format")
    if form == CODEBOOK:
        return "a codebook"
    if form == PRETRAINING:
        return "the checkpoint of an fseg pretrain that has not ended (run it again, and it goes on)"
    if form == ENCODER:
        if "classifier" in metadata:
            return "a classifier of fseg cam train"
        name = metadata.get("name", "")[:80]
        return f"the encoder {name!r} of fseg pretrain" if "card" in metadata else f"the weights of {name!r}"
    if {"fingerprint", "epoch", "best"} <= metadata.keys():
        return "the state of an fseg cam train that has not ended (run it again, and it goes on)"
    return "a safetensors file of another program"


def is_written_here(path: str | Path) -> bool:
    """Whether a file is one of tensors that this program wrote, whichever."""
    try:
        return not _kind_of_tensors(read_header(path).metadata).endswith("another program")
    except (BrokenFileError, OSError):
        return False


def _is_text(head: bytes) -> bool:
    try:
        head[: head.rfind(b"\n") + 1 or None].decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def suggest_names(name: str, known: Iterable[str]) -> str:
    """``did you mean a or b? `` for a name that is looked up and not known; empty where nothing is near."""
    names = [str(one) for one in known]
    by_key = {one.lower().replace("_", "-"): one for one in names}
    key = name.lower().replace("_", "-")
    near = difflib.get_close_matches(key, by_key, n=3, cutoff=0.6)
    near = (
        near or [one for one in by_key if len(key) > 2 and (one.startswith(key) or key.startswith(one))][:3]
    )
    return f"did you mean {' or '.join(by_key[one] for one in near)}? " if near else ""
