"""The hub: whether a published encoder's file can be had there, and the file itself.

huggingface_hub does the work: the token comes from its usual places (``HF_TOKEN``, ``hf auth login``), files
are kept in its own cache, which other programs share, and ``HF_ENDPOINT`` names another hub.
"""

import importlib.util
import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

from fseg_jax.encoders.catalog.row import Row
from fseg_jax.errors import InputError
from fseg_jax.files.downloads import cache_folder, fetch, is_disk_error

ANSWER_TIMEOUT = 10.0  # seconds for the hub's first answer, when a file is wanted

_log = logging.getLogger(__name__)


class Status(NamedTuple):
    """Whether an encoder's weights can be had: ``cached``, ``reachable``, ``gated: access granted``,
    ``gated: access not granted``, ``missing`` or ``offline``; and where, or what to do.
    """

    state: str
    detail: str


def check_access(row: Row, *, timeout: float = 3.0) -> Status:
    """What the hub says of an encoder's file, asked without fetching it."""
    from huggingface_hub import errors

    try:
        where = _ask_url(row, timeout) if row.url else f"{row.repo}/{_published(row, timeout)}"
    except (errors.EntryNotFoundError, errors.HTTPError, OSError) as error:
        return Status(_state(error), str(_refusal(row, error)))
    return Status("gated: access granted" if row.gated else "reachable", where)


def find_download(row: Row) -> Path | None:
    """The published file, where the hub's own cache on this machine holds it."""
    from huggingface_hub import try_to_load_from_cache

    if row.url:
        path = _kept(row) / row.files[0]
        return path if path.is_file() else None
    for file in row.files:
        found = try_to_load_from_cache(row.repo, file, repo_type=row.repo_type)
        if isinstance(found, str):
            return Path(found)
    return None


def fetch_checkpoint(row: Row) -> Path:
    """The published file of an encoder, from this machine where it is here, or else from where it is
    published.

    A file whose bytes are not those that were published is fetched again. InputError, in one line that says
    what to do, where there is no network, no access, no such file, no room, or no torch to read it with.
    """
    from huggingface_hub import errors

    here = find_download(row)
    if here is not None and _is_intact(here):
        return here
    if here is not None:
        _log.warning("%s is damaged: it is fetched again", here)
    if row.url:
        _require_torch(row, row.files[0])
        return fetch(row.url + row.files[0], _kept(row), otherwise=_by_hand(row))
    try:
        file = _published(row, ANSWER_TIMEOUT)
    except (errors.EntryNotFoundError, errors.HTTPError, OSError, ValueError) as error:
        raise _refusal(row, error) from error
    _require_torch(row, file)
    try:
        path = _download(row, file, again=here is not None)
    except Exception as error:  # the hub's several ways of transport raise what they like
        raise _refusal(row, error) from error
    if not _is_intact(path):
        raise InputError(f"{path}: what came is not what {row.repo} published: delete it and try again")
    return path


def is_reachable(*, timeout: float = 3.0) -> bool:
    """Whether the hub answers at all."""
    import requests
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        requests.head(_endpoint() or constants.ENDPOINT, timeout=timeout)
    except OSError:
        return False
    return True


def _endpoint() -> str | None:
    # huggingface_hub reads the variable once, when it is imported.
    return os.environ.get("HF_ENDPOINT") or None


def _published(row: Row, timeout: float) -> str:
    """Which of a row's files the hub has: one question each, no second try, so that no network is found out
    soon.
    """
    from huggingface_hub import errors, get_hf_file_metadata, get_token, hf_hub_url

    for file in row.files:
        url = hf_hub_url(row.repo, file, repo_type=row.repo_type, endpoint=_endpoint())
        try:
            said = get_hf_file_metadata(
                url, token=get_token() or False, timeout=timeout, endpoint=_endpoint()
            )
        except errors.EntryNotFoundError:
            if file == row.files[-1]:
                raise
        else:
            _check_names(row, said.etag, said.commit_hash)
            return file
    raise LookupError(f"{row.name} names no file")


def _check_names(row: Row, content: str | None, commit: str | None) -> None:
    """Raise ``InputError`` unless what names files in the hub's cache has the form of a hash: the cache takes
    it from the answer as it is, and a name may lead anywhere.
    """
    hashes = r"[0-9a-f]{40}|[0-9a-f]{64}"
    for what, name, form in (("content", content, hashes), ("commit", commit, "[0-9a-f]{40}")):
        if not (isinstance(name, str) and re.fullmatch(form, name)):
            raise InputError(
                f"{row.name}: {row.repo} names its {what} {str(name)[:60]!r}, which is no hash: "
                f"check HF_ENDPOINT, or {_by_hand(row)}"
            )


def _download(row: Row, file: str, *, again: bool) -> Path:
    from huggingface_hub import get_token, hf_hub_download

    path = hf_hub_download(
        row.repo,
        file,
        repo_type=row.repo_type,
        endpoint=_endpoint(),
        token=get_token() or False,
        force_download=again,
    )
    return Path(path)


def _ask_url(row: Row, timeout: float) -> str:
    import requests

    url = f"{row.url}{row.files[0]}"
    requests.head(url, timeout=timeout, allow_redirects=True).raise_for_status()
    return url


def _kept(row: Row) -> Path:
    return cache_folder() / "checkpoints" / row.name


def _is_intact(path: Path) -> bool:
    """False where the hub's cache names a file by its SHA-256, as it does large ones, and has another one."""
    from fseg_jax.encoders.weights.checkpoint import hash_file

    # One link and no further: the hub's cache may itself link to a store with names of another kind.
    published = path.readlink().name if path.is_symlink() else ""
    return not re.fullmatch("[0-9a-f]{64}", published) or hash_file(path) == published


def _require_torch(row: Row, file: str) -> None:
    """Said before the gigabytes come, rather than after."""
    if not file.endswith(".safetensors") and importlib.util.find_spec("torch") is None:
        raise InputError(
            f"{row.name} is published as {Path(file).name}, which takes torch to convert, once: "
            "pip install 'fseg-jax[convert]'"
        )


def _refusal(row: Row, error: BaseException) -> InputError:
    """What stood in the way of a file of the hub, and what to do."""
    from huggingface_hub import constants, errors, get_token

    code = _code(error)
    if is_disk_error(error):
        return InputError(
            f"{constants.HF_HUB_CACHE}: the download cannot be kept there ({_reason(error)}): "
            "free the disk, or set HF_HOME to a folder with room"
        )
    if _is_gate(error):
        if get_token() is None:
            return InputError(
                f"{row.name} is gated: ask for access at {row.page}, "
                "then log in with `hf auth login` or set HF_TOKEN"
            )
        return InputError(
            f"{row.name} is gated, and the token here has no access to it: ask for access at {row.page}, "
            "or log in as someone who has it (`hf auth login` or HF_TOKEN)"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(f"{row.name}: the hub knows no repository {row.repo}: check the name")
    if code == 404:
        return InputError(
            f"{row.name}: {row.url or row.repo} has no {' and no '.join(row.files)}: "
            f"look at {row.page}, and give the checkpoint with --weights FILE"
        )
    if code == 401:
        return InputError(
            f"{row.name}: the hub rejects the token: log in again (`hf auth login` or HF_TOKEN)"
        )
    if code is not None:
        return InputError(f"{row.name}: the hub answered {code}: try again later, or {_by_hand(row)}")
    return InputError(
        f"{row.name}: its weights are not here and cannot be fetched ({_reason(error)}): {_by_hand(row)}"
    )


def _state(error: BaseException) -> str:
    if _is_gate(error):
        return "gated: access not granted"
    return "missing" if _code(error) in (401, 404, 410) else "offline"


def _is_gate(error: BaseException) -> bool:
    from huggingface_hub import errors

    # A token that is limited to other repositories gets a plain 403.
    return isinstance(error, errors.GatedRepoError) or _code(error) == 403


def _by_hand(row: Row) -> str:
    """How to get a file to a machine without a network."""
    kind = " --repo-type dataset" if row.repo_type == "dataset" else ""
    how = (
        f"fetch {row.url}{row.files[0]}" if row.url else f"run `hf download{kind} {row.repo} {row.files[0]}`"
    )
    return f"on a machine with a network {how}, and give the file with --weights FILE here"


def _reason(error: BaseException) -> str:
    """A foreign error as part of a line."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split()).split(". ")[0]
    return text if 0 < len(text) <= 120 else type(error).__name__


def _code(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
