"""Run a cohort: every slide of a manifest, each a unit of work of its own, resumed after any failure.

A slide ``NAME`` has below the place for results what ``fseg segment`` writes of it, published in one step.
Its record ``NAME.json`` comes last, and states in ``settings_hash`` all that the result depends on.
``records.py`` says which files stand beside.

``run_slide`` is the worker: it knows the place and one slide, and nothing of what runs it. ``run_cohort``
gives slides to an engine (``engines.py``) and keeps the books.
"""

import logging
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from fseg_jax.cohort.agreement import agree, agree_on_names, is_agreed, list_names
from fseg_jax.cohort.job import (
    Job,
    hash_feature_settings,
    hash_settings,
    load_card,
    load_encoder_once,
    resolve_settings,
)
from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.cohort.records import (
    FAILURES,
    Failure,
    failure_key,
    neighbours_key,
    record_key,
    thumbnail_key,
    timing_key,
    typical_key,
)
from fseg_jax.cohort.stages import Stages
from fseg_jax.cohort.survey import Survey, identify_slide, inspect_slide, survey
from fseg_jax.cohort.tables import write_tables
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError, OutputError, explain
from fseg_jax.files.partial_folders import BusyError
from fseg_jax.files.storage import Storage, open_storage
from fseg_jax.outputs import report
from fseg_jax.outputs.labels import open_labels
from fseg_jax.outputs.neighbours import encode_neighbours, measure_neighbours
from fseg_jax.outputs.picture import arrange_tiles, encode_jpeg, read_picture
from fseg_jax.pipeline.plan import Plan, Settings, choose_mpp, lay_out, warn_if_mpp_differs
from fseg_jax.pipeline.publish import Clock, encode_json
from fseg_jax.pipeline.record import Segmentation
from fseg_jax.pipeline.segment import SUFFIXES, Keep, draw_labelled, write_labels
from fseg_jax.pipeline.tokens import KEPT_SUFFIX, FeatureSource, bound_kept_bytes, encode_tiles, open_kept
from fseg_jax.process import Progress, format_seconds
from fseg_jax.slides.identity import is_same_slide
from fseg_jax.slides.reader import Slide, open_slide

_log = logging.getLogger(__name__)

_RESERVED = ("cohort", "areas", "failures", "names")  # their tables would be taken for a slide's

OutcomeStatus = Literal[
    "done",
    "already",  # done by another run
    "busy",  # another run is at it
    "failed",
    "stopped",  # failed for a reason that stops every other slide too
]
Tell = Callable[[str], None]
TellOutcome = Callable[["Outcome"], None]


class Outcome(NamedTuple):
    """What became of a slide."""

    slide_id: str
    status: OutcomeStatus
    reason: str = ""  # why it failed
    seconds: float = 0.0  # that it took


class Engine(AbstractContextManager["Engine", None], Protocol):
    """What runs workers: they start as they are needed, and end when the context is left."""

    def describe(self, job: Job) -> EncoderCard:
        """Return the encoder's card, from where workers run.

        Raises ``InputError`` where the encoder cannot be loaded there.
        """

    def run(self, job: Job, slides: Sequence[ManifestSlide], wait_for_others: bool) -> Iterator[Outcome]:
        """Do ``run_slide`` for each slide, and yield outcomes as they come.

        A worker that dies is a failure of its slide. Nothing more is started once the iterator is closed.
        """


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        slides: Number of slides in the manifest, or in the shard.
        done: Number of those that are done now.
        failed: The slides that failed, and why.
        other: The slides that were left, with results of other settings.
    """

    slides: int
    done: int
    failed: Mapping[str, str]
    other: Sequence[str]

    def to_line(self, out: str) -> str:
        """Say it in one line."""
        line = f"{self.done} of {self.slides} slides done"
        if self.failed:
            line += f", {len(self.failed)} failed ({out}/failures.csv says why)"
        if self.other:
            line += f", {len(self.other)} left as they are, from other settings (--redo runs them again)"
        return line


def run_cohort(
    slides: Sequence[ManifestSlide],
    job: Job,
    engine: Engine,
    *,
    shard: tuple[int, int] = (0, 1),
    redo: bool = False,
    tell: Tell = lambda line: None,
    tell_outcome: TellOutcome = lambda outcome: None,
) -> Summary:
    """Segment what is missing of a cohort, and bring its tables and its report up to date.

    Slides are run again, and it is said why, where their results are not whole any more, or of another file
    than the one that is there now.

    Args:
        slides: All slides of the manifest.
        job: What they have in common.
        engine: What runs them; its workers have ended on return.
        shard: (i, n) takes every n-th slide from the i-th on.
        redo: Whether slides that were run with other settings are run again; otherwise they are left.
        tell: Called with each line for the user.
        tell_outcome: Called with what became of each slide that was run.

    Raises:
        InputError: The place is for other settings, before anything is run.
        OutputError: Nothing can be written in the place, as soon as that shows.
    """
    if reserved := [slide.slide_id for slide in slides if slide.slide_id.casefold() in _RESERVED]:
        raise InputError(f"the slide_id {reserved[0]!r} is that of a cohort's own table; give it another")
    if job.names is not None:
        if job.codebook is None:
            raise InputError(
                "--names: without --codebook each slide has clusters of its own; give a codebook"
            )
        job.names.apply(job.codebook.k)
    share = list(slides[shard[0] :: shard[1]])
    storage = open_storage(job.out)
    try:
        with engine:
            card = engine.describe(job)
            if job.codebook is not None:
                job.codebook.check(card.name, card.channels, card.weights_hash)
            storage.recover()
            before = survey(storage, job, card, share)
            if line := agree(storage, job, card, before, redo):
                tell(line)
            job = agree_on_names(storage, job, before)
            _tell_survey(before, redo, tell)
            untouched = [] if redo else before.other
            todo = [s for s in share if s.slide_id not in before.done and s.slide_id not in untouched]
            tell(f"{len(before.done)} of {len(share)} slides are done, {len(todo)} to do")
            if job.keep_features and todo:
                _tell_size(job, card, todo, tell)
            for key in set(storage.list_keys(FAILURES)) & {failure_key(name) for name in before.done}:
                storage.delete(key)
            failed = _run_slides(engine, job, todo, storage, before, tell, tell_outcome) if todo else {}
    finally:
        if not isinstance(sys.exception(), InputError):  # where nothing was begun, or nothing can be removed
            storage.recover()  # of what workers that died, or were interrupted, were at
    write_tables(storage, job, card, slides, is_whole=shard[1] == 1)
    return Summary(len(share), len(share) - len(failed) - len(untouched), failed, untouched)


def _tell_survey(before: Survey, redo: bool, tell: Tell) -> None:
    if before.other:
        tell(f"{list_names(before.other)}: run with other settings" + ("; run again" if redo else ""))
    by_reason = defaultdict(list)
    for name, reason in before.outdated.items():
        by_reason[reason].append(name)
    for reason, names in by_reason.items():
        tell(f"{list_names(names)}: {reason}; run again")


def _tell_size(job: Job, card: EncoderCard, slides: Sequence[ManifestSlide], tell: Tell) -> None:
    settings = replace(job.settings, mpp=choose_mpp(card, job.settings, job.codebook))
    resolved = [(slide.path, resolve_settings(slide, job)) for slide in slides]
    files = [(path, own.mpp_override, own.series) for path, own in resolved]
    size = _format_bytes(bound_kept_bytes(files, card, settings))
    tell(f"features to keep: {size} at most, if all of the slides were tissue; zstd makes it less")


def _run_slides(
    engine: Engine,
    job: Job,
    slides: Sequence[ManifestSlide],
    storage: Storage,
    before: Survey,
    tell: Tell,
    tell_outcome: TellOutcome,
) -> dict[str, str]:
    """Run slides, write down which failed, and return these with their reasons."""
    failed: dict[str, str] = {}
    by_id = {slide.slide_id: slide for slide in slides}
    outcomes = _yield_outcomes(engine, job, slides, tell)
    began = time.monotonic()
    for count, outcome in enumerate(outcomes, 1):
        name, status, reason, seconds = outcome
        if status == "stopped":
            raise OutputError(reason)
        left = (time.monotonic() - began) / count * (len(slides) - count)
        position = f"[{count}/{len(slides)}{f', {format_seconds(left)} left' if left else ''}] {name}"
        if status == "failed":
            failed[name] = reason
            path = str(by_id[name].path)  # has a column of its own
            failure = Failure(name, path, reason.removeprefix(f"{path}: "), outdated=name in before.outdated)
            storage.write(failure_key(name), failure.to_json())
            tell(f"{position}: failed: {reason}")
        else:
            storage.delete(failure_key(name))
            tell(f"{position}: {'done by another run' if status == 'already' else f'{seconds:.1f} s'}")
        tell_outcome(outcome)
    return failed


def _yield_outcomes(
    engine: Engine, job: Job, slides: Sequence[ManifestSlide], tell: Tell
) -> Iterator[Outcome]:
    """Yield the outcomes of slides; those that another run is at come last, once it is through with them."""
    by_id = {slide.slide_id: slide for slide in slides}
    busy: list[ManifestSlide] = []
    for outcome in engine.run(job, slides, False):
        if outcome.status == "busy":
            busy.append(by_id[outcome.slide_id])
        else:
            yield outcome
    if busy:
        tell(f"{len(busy)} slides are with another run: waiting for it")
        yield from engine.run(job, busy, True)


# ------------------------------------------------------------------------------------------- one slide


def run_slide(
    job: Job,
    slide: ManifestSlide,
    *,
    wait: bool = False,
    stages: Stages | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> Outcome:
    """Segment one slide of a cohort and publish it. Whatever goes wrong with it comes back as an outcome.

    Args:
        job: What the slides have in common.
        slide: The slide.
        wait: Whether to wait for another run that is at it, and not say that it is.
        stages: The stages through which it goes beside other slides of this process; None: it is alone.
        progress: Called as the work goes on.
    """
    name = slide.slide_id
    try:
        return _run_slide(job, slide, wait, stages or Stages(), progress)
    except BusyError:
        return Outcome(name, "busy")
    except OutputError as error:
        return Outcome(name, "stopped", str(error))
    except InputError as error:
        return Outcome(name, "failed", " ".join(str(error).split()))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # one slide must not end the others, nor a library that panics a worker
        _log.info("%s: %s", name, error, exc_info=True)
        return Outcome(name, "failed", explain(error))


def _run_slide(job: Job, slide: ManifestSlide, wait: bool, stages: Stages, progress: Progress) -> Outcome:
    """Enter the pipeline with one slide, and add the cohort's books to its outputs."""
    storage = open_storage(job.out)
    name = slide.slide_id
    clock = Clock()
    with storage.open_workplace(name, wait=wait) as folder, ExitStack() as opened:
        card, settings = load_card(job), resolve_settings(slide, job)
        if inspect_slide(storage, job, card, slide, storage.read(record_key(name))).status == "done":
            return Outcome(name, "already")
        keep = Keep(hash_feature_settings(job, card, settings), job.dtype) if job.keep_features else None
        with stages.enter("lay out", clock):
            plan, source, pixels = opened.enter_context(_open_features(job, slide, card, settings))
            clock.lap("tissue")
        with stages.enter("label", clock):
            labelled = write_labels(
                folder,
                plan,
                source,
                card,
                job.codebook,
                settings,
                names=job.names,
                form=job.form,
                first_colour=0 if job.codebook else _choose_first_colour(name),
                keep=keep,
                clock=clock,
                progress=progress,
            )
        with stages.enter("draw", clock):
            result = draw_labelled(
                folder, labelled, settings, slide=pixels, form=job.form, clock=clock, progress=progress
            )
            keys = _write_books(folder, job, card, settings, name, result)
        opened.close()
        if not is_agreed(storage, job, card):
            raise OutputError(f"{job.out}: another run has begun there with other settings; this one ends")
        suffixes = (*SUFFIXES, KEPT_SUFFIX) if keep else SUFFIXES
        keys = [*(f"{name}{suffix}" for suffix in suffixes), *keys, typical_key(name), neighbours_key(name)]
        storage.publish(folder, list(dict.fromkeys(keys)))
    return Outcome(name, "done", seconds=sum(result.timing.seconds.values()))


def _write_books(
    folder: Path, job: Job, card: EncoderCard, settings: Settings, name: str, result: Segmentation
) -> list[str]:
    """Write what a cohort keeps of a slide beside its outputs, the record first; return its keys."""
    record = {
        **result.result_to_json(),
        "dtype": job.dtype,
        "settings_hash": hash_settings(job, card, settings),
    }
    picture = read_picture((folder / f"{name}.png").read_bytes())
    labels = open_labels(folder / f"{name}.ome.zarr")
    books = {
        record_key(name): encode_json(record),
        thumbnail_key(name): report.encode_thumbnail(picture.image, picture.labels, labels.colours),
        # When and how fast is kept apart: records of two runs are the same bytes.
        timing_key(name): encode_json(result.timing.to_json()),
    }
    if job.codebook is not None:  # the report shows what slides have in common
        books[neighbours_key(name)] = encode_neighbours(measure_neighbours(labels))
    if picture.tiles:
        books[typical_key(name)] = encode_jpeg(arrange_tiles(picture.tiles))
    for key, data in books.items():
        (folder / key).parent.mkdir(exist_ok=True)
        (folder / key).write_bytes(data)
    return list(books)


def _choose_first_colour(slide_id: str) -> int:
    """Choose where a slide that is clustered by itself begins the palette, so that slides differ in it."""
    return zlib.crc32(slide_id.encode())


@contextmanager
def _open_features(
    job: Job, slide: ManifestSlide, card: EncoderCard, settings: Settings
) -> Iterator[tuple[Plan, FeatureSource, Slide | None]]:
    """Open a slide's features where an earlier run kept them, or else the slide, laid out and encoded.

    The slide itself comes third. Where features were kept, it is there for pictures only, and may be gone.
    """
    name = slide.slide_id
    if job.features:
        plan, source = open_kept(
            open_storage(job.features), name, settings, hash_feature_settings(job, card, settings)
        )
        if (now := identify_slide(slide)) and not is_same_slide(plan.slide.file, now):
            raise InputError(
                f"{job.features}/{name}{KEPT_SUFFIX}: kept of another file than {slide.path}; "
                "run with --keep-features again"
            )
        warn_if_mpp_differs(name, plan.mpp, job.codebook)
        try:
            opened = open_slide(
                slide.path, settings.mpp_override, frame=settings.frame, series=settings.series
            )
        except InputError:
            _log.warning("%s: the slide is not there, so its legend has no typical places", name)
            yield plan, source, None
            return
        with opened:
            yield plan, source, opened
        return
    with open_slide(
        slide.path, settings.mpp_override, frame=settings.frame, series=settings.series
    ) as opened:
        opened.name = name
        plan = lay_out(opened, card, settings, job.codebook)
        encoder = load_encoder_once(job.encoder, job.weights, job.dtype)
        yield plan, encode_tiles(opened, plan, encoder, settings), opened


def _format_bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
