"""A cohort: every slide of a manifest, each a unit of work of its own, resumed after any failure.

Below the place for results, a slide ``NAME`` has what ``fseg segment`` writes of it, published in one step:
the record ``NAME.json`` comes last, and states in ``settings_hash`` all that the result depends on. What
differs from one run of the same slide to the next, when and how fast it was made, is in ``timings/``; why a
slide failed, in ``failures/``. ``cohort.json`` says what settings the place is for, so that two runs never
mix theirs.

``run_slide`` is the worker: it knows the place and one slide, and nothing of what runs it. ``run_cohort``
gives slides to an engine (``engines.py``) and keeps the books.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, NamedTuple, Protocol

from fseg_jax.cohort.job import (
    AGREED,
    Job,
    agreed_hash,
    card_of,
    depends_on,
    features_hash,
    loaded_encoder,
    of_all,
    settings_hash,
    settings_of,
)
from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.cohort.survey import (
    Survey,
    facts_of,
    parsed,
    read_failure,
    read_results,
    read_timing,
    state_of,
    stated,
    survey,
)
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError, OutputError, explain
from fseg_jax.files.claims import BusyError
from fseg_jax.files.storage import Storage, open_storage
from fseg_jax.outputs import report as reports
from fseg_jax.outputs.csv_table import csv_text
from fseg_jax.pipeline.plan import Plan, Settings, choose_mpp, lay_out, warn_if_mpp_differs
from fseg_jax.pipeline.record import Clock, encode_json
from fseg_jax.pipeline.segment import SUFFIXES, Keep, write_outputs
from fseg_jax.pipeline.tokens import KEPT_SUFFIX, FeatureSource, bound_kept_bytes, encode_tiles, open_kept
from fseg_jax.process import Progress
from fseg_jax.slides.identity import is_same
from fseg_jax.slides.reader import open_slide

_log = logging.getLogger(__name__)

_RESERVED = ("cohort", "areas", "failures")  # their tables would be taken for a slide's
_FAILURE = ("slide_id", "path", "reason")  # what failures.csv says of a slide
_NAMED = 5  # slides named in a message


class Outcome(NamedTuple):
    """What became of a slide: ``done``, ``already`` (by another run), ``busy`` (another run is at it),
    ``failed``, or ``stopped``, for a reason that stops every other slide too.
    """

    slide_id: str
    status: str
    reason: str = ""
    seconds: float = 0.0


class Engine(Protocol):
    """What runs workers. It returns outcomes as they come, and starts nothing more once it is closed."""

    def describe(self, job: Job) -> EncoderCard:
        """The encoder's card, from where workers run; ``InputError`` where it cannot be loaded there."""

    def run(self, job: Job, slides: Sequence[ManifestSlide], wait_for_others: bool) -> Iterator[Outcome]:
        """``run_slide`` for each slide; a worker that dies is a failure of its slide."""


class Summary(NamedTuple):
    """How a run ended: slides of the manifest (or the shard) by what they are now."""

    slides: int
    done: int
    failed: dict[str, str]
    other: list[str]

    def line(self, out: str) -> str:
        """It in one line."""
        said = f"{self.done} of {self.slides} slides done"
        if self.failed:
            said += f", {len(self.failed)} failed ({out}/failures.csv says why)"
        if self.other:
            said += f", {len(self.other)} left as they are, from other settings (--redo runs them again)"
        return said


def run_cohort(
    slides: Sequence[ManifestSlide],
    job: Job,
    engine: Engine,
    *,
    shard: tuple[int, int] = (0, 1),
    redo: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Segment what is missing of a cohort, and bring its tables and its report up to date.

    ``shard`` (i, n) takes every n-th slide from the i-th on. Slides that were run with other settings are
    named and left, or with ``redo`` run again; slides whose results are of another file than the one that is
    there now, or not whole any more, are named and run again. Raises ``InputError`` before anything is run
    where the place is for other settings, and ``OutputError`` as soon as nothing can be written there.
    """
    if taken := [slide.slide_id for slide in slides if slide.slide_id.casefold() in _RESERVED]:
        raise InputError(f"the slide_id {taken[0]!r} is that of a cohort's own table; give it another")
    mine = list(slides[shard[0] :: shard[1]])
    if job.codebook is None:
        tell(
            "no --codebook: each slide is clustered by itself, so that cluster 1 of one is not cluster 1 of "
            "another; fseg fit makes a codebook for all of them"
        )
    card = engine.describe(job)
    if job.codebook is not None:
        job.codebook.check(card.name, card.channels, card.weights_hash)
    storage = open_storage(job.out)
    storage.sweep()
    before = survey(storage, job, card, mine)
    if said := agree(storage, job, card, before, redo):
        tell(said)
    if before.other:
        tell(f"{_some(before.other)}: run with other settings" + ("; run again" if redo else ""))
    for reason, names in _by_reason(before.outdated).items():
        tell(f"{_some(names)}: {reason}; run again")
    todo = [s for s in mine if s.slide_id not in before.done and (redo or s.slide_id not in before.other)]
    tell(f"{len(before.done)} of {len(mine)} slides are done, {len(todo)} to do")
    if job.keep_features and todo:
        settings = replace(job.settings, mpp=choose_mpp(card, job.settings, job.codebook))
        size = bound_kept_bytes([(s.path, settings_of(s, job).mpp_override) for s in todo], card, settings)
        tell(
            f"features to keep: {_bytes(size)} at most, if all of the slides were tissue; zstd makes it less"
        )
    for key in set(storage.names("failures")) & {f"failures/{name}.json" for name in before.done}:
        storage.delete(key)
    failed: dict[str, str] = {}
    count = 0
    waiting: list[ManifestSlide] = []

    def outcomes() -> Iterator[Outcome]:
        yield from engine.run(job, todo, False)
        if waiting:
            tell(f"{len(waiting)} slides are with another run: waiting for it")
            yield from engine.run(job, list(waiting), True)

    by_id = {slide.slide_id: slide for slide in mine}
    for outcome in outcomes() if todo else ():
        name, status, reason, seconds = outcome
        if status == "busy":
            waiting.append(by_id[name])
            continue
        if status == "stopped":
            raise OutputError(reason)
        count += 1
        at = f"[{count}/{len(todo)}] {name}"
        key = f"failures/{name}.json"
        if status == "failed":
            failed[name] = reason
            told = {"slide_id": name, "path": str(by_id[name].path), "reason": reason}
            storage.write(key, encode_json(told | ({"outdated": True} if name in before.outdated else {})))
            tell(f"{at}: failed: {reason}")
        else:
            storage.delete(key)
            tell(f"{at}: {'done by another run' if status == 'already' else f'{seconds:.1f} s'}")
    storage.sweep()  # of what workers that died were at
    other = [] if redo else before.other
    conclude(storage, job, card, slides, whole=shard[1] == 1)
    return Summary(len(mine), len(mine) - len(failed) - len(other), failed, other)


# ------------------------------------------------------------------------------------------- one slide


def run_slide(
    job: Job,
    slide: ManifestSlide,
    *,
    wait: bool = False,
    progress: Progress = lambda phase, done, total: None,
) -> Outcome:
    """Segment one slide of a cohort and publish it. Whatever goes wrong with it comes back as an outcome."""
    name = slide.slide_id
    clock = Clock()
    try:
        return _run_slide(job, slide, wait, clock, progress)
    except BusyError:
        return Outcome(name, "busy")
    except OutputError as error:
        return Outcome(name, "stopped", str(error))
    except InputError as error:
        return Outcome(name, "failed", " ".join(str(error).split()))
    except Exception as error:  # one slide must not end the others
        _log.info("%s: %s", name, error, exc_info=True)
        return Outcome(name, "failed", explain(error))


def _run_slide(job: Job, slide: ManifestSlide, wait: bool, clock: Clock, progress: Progress) -> Outcome:
    """Enter the pipeline with one slide, and add the cohort's books to its outputs."""
    storage = open_storage(job.out)
    name = slide.slide_id
    with storage.workplace(name, wait=wait) as folder:
        card, settings = card_of(job), settings_of(slide, job)
        if state_of(storage, job, card, slide, storage.read(f"{name}.json")).status == "done":
            return Outcome(name, "already")
        keep = Keep(features_hash(job, card, settings), job.dtype) if job.keep_features else None
        with _open_features(job, slide, card, settings) as (plan, source):
            result = write_outputs(
                folder,
                plan,
                source,
                card,
                job.codebook,
                settings,
                keep=keep,
                clock=clock,
                progress=progress,
            )
        record = {
            **result.result_to_json(),
            "dtype": job.dtype,
            "settings_hash": settings_hash(job, card, settings),
        }
        books = {
            f"{name}.json": encode_json(record),
            f"thumbnails/{name}.jpg": reports.thumbnail(plan.image, folder / f"{name}.ome.zarr"),
            # When and how fast is kept apart: records of two runs are the same bytes.
            f"timings/{name}.json": encode_json(result.timing.to_json()),
        }
        for key, data in books.items():
            (folder / key).parent.mkdir(exist_ok=True)
            (folder / key).write_bytes(data)
        if stated(parsed(storage.read(AGREED)), "settings_hash") != agreed_hash(job, card):
            raise OutputError(f"{job.out}: another run has begun there with other settings; this one ends")
        suffixes = (*SUFFIXES, KEPT_SUFFIX) if keep else SUFFIXES
        storage.publish(folder, list(dict.fromkeys([*(f"{name}{suffix}" for suffix in suffixes), *books])))
    return Outcome(name, "done", seconds=sum(result.timing.seconds.values()))


@contextmanager
def _open_features(
    job: Job, slide: ManifestSlide, card: EncoderCard, settings: Settings
) -> Iterator[tuple[Plan, FeatureSource]]:
    """Open a slide's features where an earlier run kept them, or else the slide, laid out and encoded."""
    name = slide.slide_id
    if job.features:
        plan, source = open_kept(
            open_storage(job.features), name, settings, features_hash(job, card, settings)
        )
        if (now := facts_of(slide)) and not is_same(plan.slide.to_json(), now):
            raise InputError(
                f"{job.features}/{name}{KEPT_SUFFIX}: kept of another file than {slide.path}; "
                "run with --keep-features again"
            )
        warn_if_mpp_differs(name, plan.mpp, job.codebook)
        yield plan, source
        return
    with open_slide(slide.path, settings.mpp_override) as opened:
        opened.name = name
        plan = lay_out(opened, card, settings, job.codebook)
        encoder = loaded_encoder(job.encoder, job.weights, job.dtype)
        yield plan, encode_tiles(opened, plan, encoder, settings)


# ---------------------------------------------------------------------------------------- what is there


def agree(storage: Storage, job: Job, card: EncoderCard, before: Survey, redo: bool) -> str:
    """See that the place is for these settings, or with ``redo`` make it so; what is to be told of that."""
    what = depends_on(job, card, job.settings)
    ours = {"settings_hash": agreed_hash(job, card), "settings": what, "encoder": card.to_json()}
    if storage.create(AGREED, encode_json(ours)):
        return ""
    named = f": {_some(before.other)}" if before.other else ""
    theirs = parsed(storage.read(AGREED))
    settings, digest = stated(theirs, "settings"), stated(theirs, "settings_hash")
    if not isinstance(settings, dict) or not isinstance(digest, str):
        if before.other and not redo:
            raise InputError(
                f"{storage.url}/{AGREED}: damaged, and there are results of other settings{named}; "
                "--redo runs these slides again, -o with another place keeps both"
            )
        storage.write(AGREED, encode_json(ours))
        return f"{storage.url}/{AGREED} was damaged, and is written again"
    if digest == ours["settings_hash"]:
        return ""
    if not redo:
        differs = [key for key in what if settings.get(key) != what[key]]
        said = ", ".join(f"{key} was {_short(settings.get(key))}" for key in differs)
        raise InputError(
            f"{storage.url} is of other settings ({said}){named}; --redo runs these slides again, "
            "-o with another place keeps both"
        )
    storage.write(AGREED, encode_json(ours))
    return ""


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 40 else f"{value}"


def _by_reason(slides: dict[str, str]) -> dict[str, list[str]]:
    names = defaultdict(list)
    for name, reason in slides.items():
        names[reason].append(name)
    return names


# ------------------------------------------------------------------------------------------ the books


def conclude(
    storage: Storage, job: Job, card: EncoderCard, slides: Sequence[ManifestSlide], *, whole: bool
) -> None:
    """Write failures.csv, areas.csv and, once every slide is done or has failed, report.html.

    Slides of other settings are in none of them, nor are results that are outdated and could not be made
    again. Other shards may finish in the same moment: what is written is looked at again until it is true.
    """
    seen = None
    while True:
        failures = storage.read_all(storage.names("failures"))
        records = storage.read_all([f"{slide.slide_id}.json" for slide in slides])
        now = (sorted(failures.items()), sorted(records.items()))
        if now == seen:
            return
        seen = now
        told = [failure for _, data in sorted(failures.items()) if (failure := read_failure(data))]
        outdated = {failure["slide_id"] for failure in told if failure.get("outdated")}
        made = {
            slide.slide_id: record
            for slide in slides
            if slide.slide_id not in outdated
            and (
                record := read_results(
                    records.get(f"{slide.slide_id}.json"), settings_hash(job, card, settings_of(slide, job))
                )
            )
        }
        missing = {slide.slide_id for slide in slides} - made.keys()
        reasons = [
            {name: failure[name] for name in _FAILURE} for failure in told if failure["slide_id"] in missing
        ]
        storage.write("failures.csv", _table(_FAILURE, reasons))
        if not whole and len(made) + len(reasons) < len(slides):
            continue  # the last shard writes the rest
        storage.write("areas.csv", _areas(slides, made, job.codebook is not None))
        timings = storage.read_all([f"timings/{name}.json" for name in made])
        pictures = storage.read_all([f"thumbnails/{name}.jpg" for name in made])
        page = reports.render(
            slides=[
                reports.Slide(
                    s.slide_id,
                    s.site,
                    s.split,
                    made.get(s.slide_id),
                    read_timing(timings.get(f"timings/{s.slide_id}.json")),
                    pictures.get(f"thumbnails/{s.slide_id}.jpg"),
                )
                for s in slides
            ],
            failures=reasons,
            settings=of_all(job, card),
            encoder=card.to_json(),
            codebook=asdict(job.codebook.provenance) if job.codebook else None,
        )
        storage.write("report.html", page.encode())


def _areas(slides: Sequence[ManifestSlide], made: dict[str, Any], shared: bool) -> bytes:
    """The table of areas. Clusters have columns only where all slides share them: where each was clustered
    by itself, cluster 1 of one is not that of another.
    """
    named = (name for record in made.values() for name in record["areas_mm2"]) if shared else ()
    clusters = list(dict.fromkeys(named))
    head = ["slide_id", "site", "split", "tissue_mm2", *clusters]
    rows = [
        {
            "slide_id": slide.slide_id,
            "site": slide.site,
            "split": slide.split,
            "tissue_mm2": made[slide.slide_id]["tissue_mm2"],
            **(made[slide.slide_id]["areas_mm2"] if shared else {}),
        }
        for slide in slides
        if slide.slide_id in made
    ]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[dict[str, Any]]) -> bytes:
    return csv_text(head, rows).encode()


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def _some(names: Sequence[str]) -> str:
    said = ", ".join(names[:_NAMED])
    return said if len(names) <= _NAMED else f"{said} and {len(names) - _NAMED} more"
