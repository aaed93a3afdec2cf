"""The JSON files of a cohort: what is written is read again, and what is damaged is none."""

import json

import pytest

from fseg_jax.cohort.records import Agreement, Failure, SlideRecord, read_timing
from fseg_jax.encoders.classical import classical

pytestmark = pytest.mark.smoke

DAMAGED = [None, b"", b"{", b"[]", b"null", b'{"slide": {"path": 1}}', b"[" * 100_000]
RECORD = {
    "slide": {"path": "a.svs", "identity": "01"},
    "settings_hash": "ab",
    "tissue_mm2": 1.5,
    "areas_mm2": {"cluster 1": 1.5},
    "colours": {"cluster 1": "#009e73"},
    "border_share": {"cluster 1": 0.25},
    "typical": {"cluster 1": [{"x": 1.0, "y": 2.0, "share": 0.5}]},
    "tiles": 3,
    "versions": {"jax": "0.10"},
    "device": "cpu",
}

BROKEN = [("border_share", {}), ("typical", {"cluster 1": [1]}), ("colours", {"cluster 1": "red"})]


def test_an_agreement_is_read_as_it_was_written():
    agreement = Agreement("ab", {"k": 4, "mpp": 1.0}, classical().card)
    assert Agreement.from_json(agreement.to_json()) == agreement
    content = json.loads(agreement.to_json())
    assert list(content) == ["settings_hash", "settings", "encoder"]
    content["encoder"].pop("stride")
    damaged = Agreement.from_json(json.dumps(content).encode())
    assert damaged == Agreement("ab", {"k": 4, "mpp": 1.0}, None)


def test_a_failure_is_read_as_it_was_written():
    for outdated, keys in ((False, ["slide_id", "path", "reason"]), (True, [*Failure.__match_args__])):
        failure = Failure("A", "a.svs", "gone", outdated)
        assert Failure.from_json(failure.to_json()) == failure
        assert list(json.loads(failure.to_json())) == keys


def test_a_record_without_totals_still_says_of_which_slide_it_is():
    record = SlideRecord.from_json(json.dumps(RECORD).encode())
    assert record is not None and record.totals is not None
    assert (record.settings_hash, record.totals.areas_mm2) == ("ab", {"cluster 1": 1.5})
    for name, value in (("tiles", "3"), ("areas_mm2", {"cluster 1": None}), ("versions", 1), *BROKEN):
        record = SlideRecord.from_json(json.dumps(RECORD | {name: value}).encode())
        assert record is not None and record.slide.path == "a.svs" and record.totals is None


@pytest.mark.parametrize("data", DAMAGED)
def test_what_is_damaged_is_none(data):
    assert [read(data) for read in (Agreement.from_json, Failure.from_json, SlideRecord.from_json)] == [
        None
    ] * 3
    assert read_timing(data) is None


def test_a_timing_without_a_time_zone_is_none():
    timing = {"seconds": {"outputs": 1.0}, "tiles_per_second": 2.0, "finished": "2026-01-01T00:00:00+00:00"}
    read = read_timing(json.dumps(timing).encode())
    assert read is not None and read.seconds == {"outputs": 1.0} and read.finished.year == 2026
    assert read_timing(json.dumps(timing | {"finished": "2026-01-01T00:00:00"}).encode()) is None
