"""The catalog as text."""

import pytest
from tiny import GATED

from fseg_jax.encoders import listing
from fseg_jax.encoders.catalog import published as catalog
from fseg_jax.encoders.weights import hub

pytestmark = pytest.mark.smoke


def test_the_catalog_is_printed_whole_and_row_by_row():
    table = listing.format_table(catalog.CATALOG.values()).splitlines()
    assert len(table) == len(catalog.CATALOG) + 1
    assert len({line.index("gated") for line in table if line.endswith(" gated")}) == 1
    sheet = listing.format_sheet(GATED, hub.Status("offline", "no network"))
    for fact in ("30,000 parameters", "CC-BY-4.0 (gated)", GATED.page, "Nobody, 2024", "offline: no network"):
        assert fact in sheet
    assert "a text tower of 110,860,033 parameters" in listing.format_sheet(
        catalog.CATALOG["keep"], hub.Status("offline", "no network")
    )
    assert "not stated" in sheet and "blocks.1: 32 channels, 8 pixels a token" in sheet
