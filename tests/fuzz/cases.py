"""Damaged files read one after the other in a process of their own, with little memory and little time."""

import multiprocessing
import re
import resource
import shutil
import tempfile
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import NamedTuple

import mutations

SECONDS = 20  # of a processor, that a case may take
PATIENCE = 120  # of the clock, after which a case is taken for hung: the machine may be busy
MEMORY = 2 << 30  # bytes beyond what the process has when it begins
_SPAWN = multiprocessing.get_context("spawn")


class Outcome(NamedTuple):
    """What came of a case: ``read``, ``refused`` (an ``InputError``), or what went wrong; seconds of the
    processor, and bytes of memory beyond what the process had."""

    what: str
    detail: str
    seconds: float
    memory: int

    @property
    def good(self) -> bool:
        return self.what in ("read", "refused") and self.seconds <= SECONDS


class Reader:
    """A process that reads what it is given; started again when it dies. A context manager."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fseg-fuzz-"))
        self._samples = self._folder / "samples"
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._places: dict[str, Path] = {}
        self._start()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def read(self, name: str, random: Random) -> Outcome:
        """Damage the sample of a name at random, and have it read."""
        sample = self._prepare(name)
        scratch = self._folder / "case"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(sample if sample.is_dir() else sample.parent, scratch)
        target = scratch if sample.is_dir() else scratch / sample.name
        files = sorted(p for p in scratch.rglob("*") if p.is_file()) if sample.is_dir() else [target]
        damaged = random.choice(files)
        damaged.write_bytes(mutations.damage(random, damaged.name, damaged.read_bytes()))
        return self._ask(name, target)

    def _prepare(self, name: str) -> Path:
        """Where a whole sample is, once the process has read it: what it loads and compiles is no case's."""
        assert self._connection is not None
        if name not in self._places:
            self._connection.send((name, None))
            self._places[name] = Path(self._connection.recv())
        return self._places[name]

    def _ask(self, name: str, path: Path) -> Outcome:
        assert self._connection is not None and self._process is not None
        began = time.perf_counter()
        self._connection.send((name, str(path)))
        if not self._connection.poll(PATIENCE):
            self._stop()
            self._start()
            return Outcome("hung", f"no answer in {PATIENCE} s", time.perf_counter() - began, 0)
        try:
            return Outcome(*self._connection.recv())
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self._start()
            return Outcome("died", f"the process ended with {code}", time.perf_counter() - began, 0)

    def _start(self) -> None:
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs, str(self._samples)), daemon=True)
        self._process.start()
        theirs.close()
        self._places = {}

    def _stop(self) -> None:
        assert self._connection is not None and self._process is not None
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, folder: str) -> None:
    warnings.simplefilter("ignore")
    import readers

    from fseg_jax.errors import InputError

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            name, path = connection.recv()
        except EOFError:
            return
        if path is None:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            connection.send(str(_whole(Path(folder) / name.partition(" by ")[0], name)))
            resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY, resource.RLIM_INFINITY))
            continue
        before, began = _forget_peak(), time.process_time()
        try:
            readers.READERS[name](Path(path))
            what, detail = "read", ""
        except InputError as error:
            what, detail = "refused", str(error)
            if not detail or (
                "\n" in detail and "nothing was started" not in detail
            ):  # what a manifest lacks
                what = "said in several lines, or none"
        except BaseException as error:
            what, detail = type(error).__name__, traceback.format_exc()
        connection.send((what, detail, time.process_time() - began, _status("VmHWM") - before))


def _whole(folder: Path, name: str) -> Path:
    """Where the whole sample of a reader is, written where it is not there yet; the reader is tried on it."""
    import readers
    import samples

    written = folder / "place.txt"
    if not written.exists():
        place = samples.SAMPLES[folder.name](folder / "sample")
        written.write_text(str(place))
    place = Path(written.read_text())
    scratch = folder.parent.parent / "case"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(place if place.is_dir() else place.parent, scratch)
    readers.READERS[name](scratch if place.is_dir() else scratch / place.name)
    return place


def _status(name: str) -> int:
    """Bytes, as the system says of this process."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def _forget_peak() -> int:
    """Begin a new peak of memory, and say what there is now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")
