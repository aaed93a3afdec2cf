"""See that a place is for the settings of a run, so that two runs never mix theirs."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from fseg_jax.cohort.job import Job, hash_cohort_settings, list_dependencies
from fseg_jax.cohort.records import AGREEMENT, NAMES, Agreement
from fseg_jax.cohort.survey import Survey
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.files.storage import Storage
from fseg_jax.outputs.cluster_names import Clusters, format_names, name_clusters, parse_names
from fseg_jax.outputs.colours import format_hex

_NAMES_LISTED = 5  # slides that a message names
_VALUE_LENGTH = 40  # characters of a value in a message; a hash is cut


def agree(storage: Storage, job: Job, card: EncoderCard, before: Survey, redo: bool) -> str:
    """Write what settings a place is for, or check that it is for those of the run.

    Returns a line for the user; empty where there is nothing to say.

    Raises:
        InputError: The place is for other settings, and not to be made anew (``redo``).
    """
    dependencies = asdict(list_dependencies(job, card, job.settings))
    agreement = Agreement(hash_cohort_settings(job, card), dependencies, card)
    if storage.create(AGREEMENT, agreement.to_json()):
        return ""
    others = f": {list_names(before.other)}" if before.other else ""
    present = Agreement.from_json(storage.read(AGREEMENT))
    if present is None:
        if before.other and not redo:
            raise InputError(
                f"{storage.url}/{AGREEMENT}: damaged, and there are results of other settings{others}; "
                "--redo runs these slides again, -o with another place keeps both"
            )
        storage.write(AGREEMENT, agreement.to_json())
        return f"{storage.url}/{AGREEMENT} was damaged, and is written again"
    if present.settings_hash == agreement.settings_hash:
        return ""
    if not redo:
        differs = [key for key in dependencies if present.settings.get(key) != dependencies[key]]
        listed = ", ".join(f"{key} was {_shorten(present.settings.get(key))}" for key in differs)
        raise InputError(
            f"{storage.url} is of other settings ({listed}){others}; --redo runs these slides again, "
            "-o with another place keeps both"
        )
    if present.settings.get("codebook") != dependencies["codebook"]:
        storage.delete(NAMES)  # of other clusters
    storage.write(AGREEMENT, agreement.to_json())
    return ""


def is_agreed(storage: Storage, job: Job, card: EncoderCard) -> bool:
    """Whether a place is still for the settings of a run."""
    present = Agreement.from_json(storage.read(AGREEMENT))
    return present is not None and present.settings_hash == hash_cohort_settings(job, card)


def agree_on_names(storage: Storage, job: Job, before: Survey) -> Job:
    """Write what the clusters of a place are called, or take what they are called there.

    Returns the job with the names of the place.

    Raises:
        InputError: They are called otherwise there already, or the names there do not fit the codebook.
    """
    if job.codebook is None:
        return job
    given = None if job.names is None else format_names(job.names)
    present = storage.read(NAMES)
    if given is not None and present is None and not before.done and not storage.create(NAMES, given):
        present = storage.read(NAMES)  # another run was quicker
    names, file = job.names, "" if job.names is None else job.names.source
    if present is not None:
        theirs = parse_names(present, f"{storage.url}/{NAMES}")
        of_place = name_clusters(theirs, job.codebook.k)
        if names is None or _is_same(names.keep(of_place).apply(job.codebook.k), of_place):
            file = file or theirs.source
            names, given = theirs, present
    clusters = name_clusters(names, job.codebook.k)
    called = tuple(zip(clusters.names, map(format_hex, clusters.colours), strict=True))
    if before.clusters - {called} or (present is not None and given not in (None, present)):
        raise InputError(
            f"{storage.url}: clusters have other names there; fseg names {storage.url} {file or 'FILE'} "
            "renames them"
        )
    if given is not None and present is None:
        storage.write(NAMES, given)
    return replace(job, names=names)


def _is_same(a: Clusters, b: Clusters) -> bool:
    return a.names == b.names and bool((a.colours == b.colours).all())


def list_names(names: Sequence[str]) -> str:
    """Name a few slides, and count the others.

    >>> list_names(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more'
    """
    listed = ", ".join(names[:_NAMES_LISTED])
    return listed if len(names) <= _NAMES_LISTED else f"{listed} and {len(names) - _NAMES_LISTED} more"


def _shorten(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > _VALUE_LENGTH else f"{value}"
