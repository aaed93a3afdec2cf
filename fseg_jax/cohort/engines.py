"""What runs the slides of a cohort: processes of this machine, or a Ray cluster."""

import logging
import multiprocessing
import os
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_tasks
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, NamedTuple

from fseg_jax.cohort.job import Job, load_card
from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.cohort.run import Outcome, run_slide
from fseg_jax.cohort.stages import Stages
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError, explain, first_line
from fseg_jax.pipeline.batching import choose_threads
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
    places: int  # slides that it works on at once


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    ready: _Ready
    slides: dict[str, ManifestSlide] = field(default_factory=dict)  # that it is at, by their ids


class _NoStartError(Exception):
    """A worker cannot be started; the message says why."""


class Local:
    """Processes of this machine, one for each device or as many as are asked for. A context manager."""

    def __init__(self, workers: int | None = None) -> None:
        self._count = workers
        self._processes: list[
            BaseProcess
        ] = []  # all that were ever started: an interruption may fall anywhere
        self._workers: list[_Worker] = []
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
        ready = first.ready
        self._count = count = self._count or ready.devices
        if count > 1 and ready.devices > 1 and ready.platform != "cpu":  # it has them all; each gets one
            first.process.terminate()
            first.process.join(_STOP_SECONDS)
            self._places = deque(_only(ready.platform, i % ready.devices) for i in range(count))
        else:
            self._workers.append(first)
            self._places = deque({} for _ in range(count - 1))
        return ready.card

    def run(self, job: Job, slides: Sequence[ManifestSlide], wait_for_others: bool) -> Iterator[Outcome]:
        """Give slides to workers as they have places, and yield the outcomes as they come.

        Where a worker dies with several slides in hand, each of them is run again with no other beside it: so
        it shows whose fault it was.
        """
        todo = deque(slides)
        suspects: set[str] = set()
        while todo or any(worker.slides for worker in self._workers):
            raise_if_stopped()
            while todo and (self._places or self._find_place(bool(suspects))):
                worker = self._find_place(alone=True) or self._next(job) or self._find_place(bool(suspects))
                if worker is None:
                    continue
                slide = todo.popleft()
                with suppress(OSError):  # it has died: recv says so
                    worker.connection.send((slide, wait_for_others))
                worker.slides[slide.slide_id] = slide
            at_work = {worker.connection: worker for worker in self._workers if worker.slides}
            for connection in wait(list(at_work), _POLL_SECONDS):
                assert isinstance(connection, Connection)
                worker = at_work[connection]
                try:
                    outcome: Outcome = connection.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    self._workers.remove(worker)
                    self._places.append(worker.process.environment)  # type: ignore[attr-defined]
                    if len(worker.slides) > 1:
                        suspects.update(worker.slides)
                        todo.extendleft(reversed(worker.slides.values()))
                        continue
                    outcome = Outcome(next(iter(worker.slides)), "failed", _end_of(worker.process))
                worker.slides.pop(outcome.slide_id)
                suspects.discard(outcome.slide_id)
                yield outcome

    def _find_place(self, alone: bool) -> _Worker | None:
        """Find the worker that is at the fewest slides, or at none, and has a place; None: there is none."""
        worker = min(self._workers, key=lambda worker: len(worker.slides), default=None)
        if worker is None or len(worker.slides) >= (1 if alone else worker.ready.places):
            return None
        return worker

    def _next(self, job: Job) -> _Worker | None:
        """Start one more worker; None where none is to be started, or that fails and there are others."""
        if not self._places:
            return None
        place = self._places.popleft()
        try:
            worker = self._start(job, place)
        except _NoStartError as error:
            if not (self._workers or self._places):
                raise InputError(str(error)) from None
            _log.warning("%s; the others go on without it", error)
            return None
        self._workers.append(worker)
        return worker

    def _start(self, job: Job, environment: dict[str, str]) -> _Worker:
        connection, worker_end = _SPAWN.Pipe()
        process = _SPAWN.Process(
            target=_serve,
            args=(worker_end, environment, job, get_verbosity(), self._count or 1),
            name="fseg-worker",
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


def _serve(
    connection: Connection, environment: dict[str, str], job: Job, verbose: int, processes: int
) -> None:
    """Be a worker, of so many: describe the encoder, then run slides until the other end is closed."""
    from fseg_jax.process import STOPPED, collect_less_often, limit_heaps, set_verbosity, stop_once

    set_verbosity(verbose)
    os.environ.update(environment)  # before jax looks for devices
    signal.signal(signal.SIGINT, stop_once)  # from the terminal; then the program sends SIGTERM
    signal.signal(signal.SIGTERM, stop_once)
    limit_heaps()
    collect_less_often()
    stages = Stages()
    sending = threading.Lock()

    def run(slide: ManifestSlide, wait_for_others: bool) -> None:
        outcome = run_slide(
            _set_threads(job, choose_threads(job.settings.threads, processes)),
            slide,
            wait=wait_for_others,
            stages=stages,
            progress=lambda *_: raise_if_stopped(),
        )
        with sending, suppress(OSError):  # nobody listens any more: this process ends
            connection.send(outcome)

    code = 0
    at_work: set[Future[None]] = set()
    pool = ThreadPoolExecutor(stages.places, thread_name_prefix="fseg-slide")
    try:
        connection.send(_describe(job, stages.places))
        while True:
            raise_if_stopped()
            at_work = {pool.submit(run, *connection.recv()), *(task for task in at_work if not task.done())}
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the process that started this one is gone
    except KeyboardInterrupt:
        code = 130
    STOPPED.set()
    wait_for_tasks(at_work, _STOP_SECONDS)  # they clear away what they were at
    os._exit(code)  # compiled code in threads would crash as the interpreter ends


def _set_threads(job: Job, threads: int) -> Job:
    return replace(job, settings=replace(job.settings, threads=threads))


def _describe(job: Job, places: int = 1) -> _Ready | str:
    try:
        import jax

        card = load_card(job)
        devices = jax.local_devices()
    except Exception as error:
        _log.info("no worker can be started", exc_info=error)
        return explain(error)
    return _Ready(card, devices[0].platform, len(devices), places)


class Ray:
    """Tasks on a Ray cluster, tried again on another node where a worker or its node dies.

    Every node needs fseg-jax, and the same paths to the slides. A task takes one GPU where the cluster has
    any, and a CPU for each thread that decodes. A context manager.
    """

    def __init__(self, address: str, threads: int = 2) -> None:
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
        self._threads = threads
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
        shared = self._ray.put(_set_threads(job, self._threads))
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
