"""What runs the slides of a cohort: processes of this machine, or a Ray cluster."""

import logging
import multiprocessing
import os
import re
import signal
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, NamedTuple

from fseg_jax.cohort.job import Job, load_card
from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.cohort.run import Outcome, run_slide
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError, explain, first_line
from fseg_jax.process import get_verbosity, raise_if_stopped

_log = logging.getLogger(__name__)

_SPAWN = multiprocessing.get_context("spawn")  # never fork once jax or tensorstore is loaded
_POLL_SECONDS = 2  # between looks at whether a signal was swallowed
_STOP_SECONDS = 30  # that a worker has to remove what it has half-done
_CONNECT_SECONDS = 10  # for a cluster to answer
_RETRIES = 3  # for a slide whose worker on a cluster died


class _Ready(NamedTuple):
    """The first message of a worker, once it has loaded the encoder."""

    card: EncoderCard
    platform: str
    devices: int


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    ready: _Ready


class _NoStartError(Exception):
    """A worker cannot be started; the message says why."""


class Local:
    """Processes of this machine, one for each device or as many as are asked for. A context manager."""

    def __init__(self, workers: int | None = None) -> None:
        self._count = workers
        self._processes: list[
            BaseProcess
        ] = []  # all that were ever started: an interruption may fall anywhere
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, ManifestSlide]] = {}
        self._places: deque[dict[str, str]] = deque([{}])  # environments of workers that are not running

    def __enter__(self) -> "Local":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        started = [process for process in self._processes if process.pid is not None]
        for process in started:
            process.terminate()  # it clears away what it was at
        for process in started:
            process.join(_STOP_SECONDS)
            process.kill()

    def describe(self, job: Job) -> EncoderCard:
        """Start the first worker, and return the card of the encoder that it has loaded."""
        try:
            first = self._start(job, {})
        except _NoStartError as error:
            raise InputError(str(error)) from None
        card, platform, devices = first.ready
        count = self._count or devices
        if count > 1 and devices > 1 and platform != "cpu":  # it has them all: each is to have one
            first.process.terminate()
            first.process.join(_STOP_SECONDS)
            self._places = deque(_only(platform, i % devices) for i in range(count))
        else:
            self._idle.append(first)
            self._places = deque({} for _ in range(count - 1))
        return card

    def run(self, job: Job, slides: Sequence[ManifestSlide], wait_for_others: bool) -> Iterator[Outcome]:
        """Give slides to workers as they become idle, and yield the outcomes as they come."""
        todo = deque(slides)
        while todo or self._busy:
            raise_if_stopped()
            while todo and (self._idle or self._places):
                if (worker := self._idle.pop() if self._idle else self._next(job)) is None:
                    continue
                slide = todo.popleft()
                with suppress(OSError):  # it has died: recv says so
                    worker.connection.send((slide, wait_for_others))
                self._busy[worker.connection] = worker, slide
            for connection in wait(list(self._busy), _POLL_SECONDS):
                assert isinstance(connection, Connection)
                worker, slide = self._busy[connection]
                try:
                    outcome = connection.recv()
                    self._idle.append(worker)
                except (EOFError, OSError):
                    worker.process.join()
                    self._places.append(worker.process.environment)  # type: ignore[attr-defined]
                    outcome = Outcome(slide.slide_id, "failed", _end_of(worker.process))
                del self._busy[connection]
                yield outcome

    def _next(self, job: Job) -> _Worker | None:
        """Start one more worker; None where that fails and there are others: its device is given up."""
        place = self._places.popleft()
        try:
            return self._start(job, place)
        except _NoStartError as error:
            if not (self._busy or self._idle or self._places):
                raise InputError(str(error)) from None
            _log.warning("%s; the others go on without it", error)
            return None

    def _start(self, job: Job, environment: dict[str, str]) -> _Worker:
        connection, worker_end = _SPAWN.Pipe()
        process = _SPAWN.Process(
            target=_serve, args=(worker_end, environment, job, get_verbosity()), name="fseg-worker"
        )
        process.environment = environment  # type: ignore[attr-defined]
        self._processes.append(process)
        process.start()
        worker_end.close()
        try:
            ready = connection.recv()
        except (EOFError, OSError):
            process.join()
            raise _NoStartError(f"no worker can be started{_on(environment)}: {_end_of(process)}") from None
        if isinstance(ready, str):
            connection.close()  # the worker waits for slides, and ends
            process.join()
            raise _NoStartError(
                f"no worker can be started{on}: {ready}" if (on := _on(environment)) else ready
            )
        return _Worker(process, connection, ready)


def _only(platform: str, index: int) -> dict[str, str]:
    """Return the environment in which JAX sees one device of several."""
    if platform == "tpu":
        bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
        return {**bounds, "TPU_VISIBLE_CHIPS": str(index)}
    name = "ROCR_VISIBLE_DEVICES" if "ROCR_VISIBLE_DEVICES" in os.environ else "CUDA_VISIBLE_DEVICES"
    visible = [device for device in os.environ.get(name, "").split(",") if device]
    return {name: visible[index] if index < len(visible) else str(index)}


def _on(environment: dict[str, str]) -> str:
    """Name the device that a worker's environment shows; empty where it shows all."""
    devices = [f"{name}={value}" for name, value in environment.items() if "VISIBLE" in name]
    return f" on the device {devices[0]}" if devices else ""


def _end_of(process: BaseProcess) -> str:
    """Say how a process ended, as the reason of a failure."""
    code = process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        return f"its worker process died ({name}{', out of memory?' if name == 'SIGKILL' else ''})"
    return f"its worker process ended with exit code {code}"


def _serve(connection: Connection, environment: dict[str, str], job: Job, verbose: int) -> None:
    """Be a worker: describe the encoder, then run slides until the other end is closed."""
    from fseg_jax.process import limit_heaps, set_verbosity, stop_once

    set_verbosity(verbose)
    os.environ.update(environment)  # before jax looks for devices
    signal.signal(signal.SIGINT, stop_once)  # from the terminal; then the program sends SIGTERM
    signal.signal(signal.SIGTERM, stop_once)
    limit_heaps()
    parent = multiprocessing.parent_process()

    def progress(phase: str, done: int, total: int) -> None:
        raise_if_stopped()
        if parent is not None and not parent.is_alive():
            raise KeyboardInterrupt

    code = 0
    try:
        connection.send(_describe(job))
        while True:
            raise_if_stopped()
            slide, wait_for_others = connection.recv()
            connection.send(run_slide(job, slide, wait=wait_for_others, progress=progress))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the process that started this one is gone
    except KeyboardInterrupt:
        code = 130
    os._exit(code)  # compiled code in threads would crash as the interpreter ends


def _describe(job: Job) -> _Ready | str:
    try:
        import jax

        card = load_card(job)
        devices = jax.local_devices()
    except Exception as error:
        _log.info("no worker can be started", exc_info=error)
        return explain(error)
    return _Ready(card, devices[0].platform, len(devices))


class Ray:
    """Tasks on a Ray cluster, tried again on another node where a worker or its node dies.

    Every node needs fseg-jax, and the same paths to the slides. A task takes one GPU where the cluster has
    any, and a CPU for each thread that decodes. A context manager.
    """

    def __init__(self, address: str, threads: int) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("--engine ray needs the package ray: pip install 'fseg-jax[ray]'") from None
        self._ray: Any = ray
        try:
            if match := re.fullmatch(r"([^/:]+):(\d+)", address):  # Ray itself would try for minutes
                socket.create_connection((match[1], int(match[2])), timeout=_CONNECT_SECONDS).close()
            self._ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"--ray-address {address}: no Ray cluster answers there ({reason})") from None
        gpus = 1 if self._ray.cluster_resources().get("GPU") else 0
        limits = {"num_cpus": threads, "num_gpus": gpus, "max_retries": _RETRIES}
        self._describe = self._ray.remote(**limits)(_describe)
        self._run = self._ray.remote(**limits)(run_slide)

    def __enter__(self) -> "Ray":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()  # ends this driver's tasks, not the cluster

    def describe(self, job: Job) -> EncoderCard:
        """Load the encoder in a task, and return its card."""
        try:
            ready: _Ready | str = self._ray.get(self._describe.remote(job))
        except self._ray.exceptions.RayError as error:
            raise InputError(f"no worker can be started on the cluster: {first_line(error)}") from None
        if isinstance(ready, str):
            raise InputError(ready)
        return ready.card

    def run(self, job: Job, slides: Sequence[ManifestSlide], wait_for_others: bool) -> Iterator[Outcome]:
        """Start a task for each slide, and yield the outcomes as they come."""
        shared = self._ray.put(job)
        running: dict[Any, ManifestSlide] = {
            self._run.remote(shared, slide, wait=wait_for_others): slide for slide in slides
        }
        while running:
            raise_if_stopped()
            for task in self._ray.wait(list(running), timeout=_POLL_SECONDS)[0]:
                slide = running.pop(task)
                try:
                    yield self._ray.get(task)
                except self._ray.exceptions.RayError as error:
                    yield Outcome(slide.slide_id, "failed", f"its worker died: {first_line(error)}")
