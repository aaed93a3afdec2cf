"""A bucket that is killed at, and one that says nothing."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import tensorstore as ts
from generations import NAMES, expect_files, write_files

from fseg_jax.cohort.manifest import read_bytes
from fseg_jax.errors import InputError, OutputError
from fseg_jax.files import bucket as bucket_module
from fseg_jax.files import futures
from fseg_jax.files.bucket import Bucket
from fseg_jax.pipeline.plan import Settings
from fseg_jax.pipeline.tokens import open_kept


class Killed(BaseException):
    """The end of the process."""


class Requests:
    """A store that is there for so many requests that change it."""

    def __init__(self, store, left: float) -> None:
        self.store, self.left = store, left

    def __getattr__(self, name: str) -> Callable:
        def ask(*arguments, **options):
            if name in ("write", "delete_range"):
                if self.left <= 0:
                    raise Killed
                self.left -= 1
            return getattr(self.store, name)(*arguments, **options)

        return ask


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Bucket]:
    """Buckets of one store in memory."""

    def spec(url: str) -> dict[str, str]:
        return {"driver": "memory", "path": urlsplit(url).path.lstrip("/")}

    monkeypatch.setattr(bucket_module, "make_bucket_spec", spec)
    monkeypatch.setattr(bucket_module, "_CONTEXT", ts.Context())
    return lambda: Bucket("s3://bucket/out")


def read_objects(bucket: Bucket) -> dict[str, str]:
    """Everything that a bucket holds, what is hidden too."""
    return {key: data.decode() for key, data in bucket.read_all(bucket._list_range("", "")).items()}


@pytest.mark.parametrize("decided_before", [False, True], ids=["once", "twice"])
def test_killed_at_any_request_the_old_or_the_new_outputs_are_whole(in_memory, tmp_path, decided_before):
    """With what another killed run had decided on, too; and while a record is there, so is all it names."""
    for generation in (1, 2, 3):
        write_files(tmp_path / str(generation), generation)
    seen = []
    for at in count():
        bucket = in_memory()
        for key in read_objects(bucket):
            bucket.delete(key)
        bucket.publish(tmp_path / "2", NAMES)
        assert read_objects(bucket) == expect_files(2)
        if decided_before:
            bucket._store = Requests(bucket._store, 14)
            with pytest.raises(Killed):
                bucket.publish(tmp_path / "3", NAMES)
            assert ".S.json.whole" in read_objects(in_memory())
        bucket = in_memory()
        bucket._store = Requests(bucket._store, at)
        try:
            bucket.publish(tmp_path / "1", NAMES)
            died = False
        except Killed:
            died = True
        again = in_memory()
        held = read_objects(again)
        if "S.json" in held:
            assert {k: v for k, v in held.items() if k[0] != "."} in (
                expect_files(1),
                expect_files(2),
                expect_files(3),
            )
        again._store = Requests(again._store, at // 2)  # killed as it sweeps, too
        with suppress(Killed):
            again.recover()
        last = in_memory()
        last.recover()
        held = {k: v for k, v in read_objects(last).items() if ".partial/" not in k}
        assert held in (expect_files(1), expect_files(3) if decided_before else expect_files(2))
        seen.append(held == expect_files(1))
        if not died:
            assert read_objects(last) == expect_files(1)
            break
    assert at > 20 and not seen[0] and seen == sorted(seen)


def test_what_was_begun_in_a_bucket_a_day_ago_is_removed(in_memory, tmp_path, monkeypatch):
    for generation in (1, 2):
        write_files(tmp_path / str(generation), generation)
    bucket = in_memory()
    bucket.publish(tmp_path / "2", NAMES)
    bucket._store = Requests(bucket._store, 3)
    with pytest.raises(Killed):
        bucket.publish(tmp_path / "1", NAMES)
    bucket = in_memory()
    bucket.recover()
    assert read_objects(bucket) != expect_files(2)  # it may be a living run's
    now = time.time()
    monkeypatch.setattr(bucket_module.time, "time", lambda: now + 2 * 86400)
    bucket.recover()
    assert read_objects(bucket) == expect_files(2)


# ---------------------------------------------------------------------------------------- one that is silent


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server that accepts connections and never answers; patience is short."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "of-the-test"),
            ("AWS_SECRET_ACCESS_KEY", "of-the-test"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}"),
        ):
            monkeypatch.setenv(name, value)
        impatient = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
        monkeypatch.setattr(bucket_module, "_CONTEXT", ts.Context({"s3_request_retries": impatient}))
        monkeypatch.setattr(futures, "_PATIENCE", 0.25)
        monkeypatch.setattr(futures, "_WARN_EVERY", 0.1)
        yield "s3://cohorts/out"
        server.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


@pytest.mark.parametrize(
    "ask",
    [
        lambda bucket, folder: bucket.read("a.json"),
        lambda bucket, folder: bucket.list_keys("failures"),
        lambda bucket, folder: bucket.write("a.json", b"{}"),
        lambda bucket, folder: bucket.create("cohort.json", b"{}"),
        lambda bucket, folder: bucket.delete("a.json"),
        lambda bucket, folder: bucket.publish(folder, ["a.json"]),
        lambda bucket, folder: bucket.recover(),
        lambda bucket, folder: open_kept(bucket, "a", Settings(), ""),
        lambda bucket, folder: read_bytes(f"{bucket.url}/manifest.csv"),
    ],
    ids=["read", "names", "write", "create", "delete", "publish", "recover", "features", "manifest"],
)
def test_a_bucket_that_does_not_answer_is_told_of_and_then_given_up(silent, tmp_path, caplog, ask):
    (tmp_path / "a.json").write_text("{}")
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match="no answer in") as caught:
        ask(Bucket(silent), tmp_path)
    assert str(caught.value).startswith(silent) and "\n" not in str(caught.value)
    assert str(caught.value).endswith(" s; look at the network and the store's credentials")
    assert 2 <= len(caplog.messages) <= 3
    assert all(message.startswith(silent) and "no answer for" in message for message in caplog.messages)


def test_patience_is_a_minute_and_more_for_what_is_large(monkeypatch):
    assert (futures._PATIENCE, futures._WARN_EVERY) == (60, 10)

    class Slow:
        """An answer that comes after so many seconds."""

        def __init__(self, seconds: float) -> None:
            self.at = time.monotonic() + seconds

        def done(self) -> bool:
            return time.monotonic() > self.at

        def result(self, timeout: float) -> str:
            time.sleep(min(timeout, max(0.0, self.at - time.monotonic())))
            if not self.done():
                raise TimeoutError
            return "there"

    monkeypatch.setattr(futures, "_PATIENCE", 0.1)
    monkeypatch.setattr(futures, "_WARN_EVERY", 0.05)
    assert futures.wait_for_store("a", Slow(0.2), Slow(0.05), size=500_000) == ["there", "there"]
    assert futures.wait_for_store("a", Slow(0.08), Slow(0.16), Slow(0.24)) == ["there"] * 3  # it does answer
    with pytest.raises(OutputError, match="a: no answer in"):
        futures.wait_for_store("a", Slow(5))


def test_an_answer_that_says_that_its_time_was_up_is_an_error_of_the_store():
    class Failed:
        def done(self) -> bool:
            return True

        def result(self, timeout: float) -> None:
            raise TimeoutError("DEADLINE_EXCEEDED")

    with pytest.raises(TimeoutError, match="DEADLINE"):
        futures.wait_for_store(str(Path("a")), Failed())
