"""A codebook's card: its warnings, and that what it writes can be read."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fseg_jax.codebook import Codebook
from fseg_jax.cohort.fit import write_books
from fseg_jax.numerics.site_index import SiteIndex
from fseg_jax.outputs.codebook_card import Card, KCard, RowFacts, find_warnings

pytestmark = pytest.mark.smoke


def make_facts(n: int, glass=0.0, border=0.0, contrast=20.0) -> RowFacts:
    return RowFacts(*(np.broadcast_to(np.asarray(fact, float), n) for fact in (glass, border, contrast)))


def list_warnings(centers, labels, slides, sites, facts=None):
    ids = [f"s{i}" for i in range(len(sites))]
    found = find_warnings(centers, labels, slides, ids, sites, facts or make_facts(len(labels)))
    return {(w.cluster, w.kind) for w in found}


def test_what_to_distrust():
    r = np.random.default_rng(0)
    centers = r.normal(size=(5, 8)).astype(np.float32)
    centers[4] = centers[3] + 1e-4
    slides = r.integers(0, 4, 2000)
    sites = ["Leeds", "Leeds", "Bath", "Oslo"]
    labels = r.integers(0, 5, 2000)
    assert list_warnings(centers, labels, slides, sites) == {(4, "collapsed"), (5, "collapsed")}
    labels[slides == 3] = 0  # the first cluster is mostly of one slide …
    labels[(labels == 0) & (slides != 3)] = 1
    assert {(1, "slide"), (1, "site")} <= list_warnings(centers, labels, slides, sites)
    assert (1, "site") not in list_warnings(centers, labels, slides, ["Leeds"] * 4)  # there is only one
    assert (1, "site") not in list_warnings(centers, labels, slides, [""] * 4)  # nobody said
    labels[labels == 2] = 1
    assert (3, "collapsed") in list_warnings(centers, labels, slides, sites)


def test_a_site_that_has_nearly_all_is_no_warning():
    slides = np.repeat([0, 1], [1900, 100])
    labels = np.random.default_rng(0).integers(0, 2, 2000)
    assert list_warnings(np.eye(2, dtype=np.float32), labels, slides, ["A", "B"]) == set()


def test_clusters_of_glass_of_borders_and_flat_ones_are_said():
    r = np.random.default_rng(0)
    labels = np.arange(4000) % 4
    cluster = np.arange(4)[labels]
    found = list_warnings(
        *(np.eye(4, dtype=np.float32), labels, np.zeros(4000, int), ["A"]),
        make_facts(
            4000,
            glass=np.where(cluster == 0, r.uniform(0.3, 1, 4000), r.uniform(0, 0.9, 4000)),
            border=np.where(cluster <= 1, r.random(4000) < 0.6, r.random(4000) < 0.4),
            contrast=np.where(cluster % 2 == 0, r.uniform(1, 6, 4000), r.uniform(2, 8, 4000)),
        ),
    )
    assert found == {
        (1, "glass"),
        (2, "border"),
        (3, "flat"),
    }  # glass is border and flat too: it is said once


def test_what_a_warning_says_is_in_words():
    facts = make_facts(40, border=np.repeat([0.0, 0.75], 20), contrast=np.repeat([1.25, 9.0], 20))
    texts = [
        w.text for w in find_warnings(np.eye(2), np.repeat([0, 1], 20), np.zeros(40, int), ["a"], [""], facts)
    ]
    assert texts == [
        "is flat: its grey values vary by 1.2 of 255, as glass or haze do",
        "is mostly border: 75% of it lies less than 40 µm from glass",
    ]


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href") and value]


def test_the_card_is_complete_and_replaces_an_older_one(tmp_path):
    tile = np.full((96, 96, 3), (200, 30, 90), np.uint8)
    of_k = KCard(
        2, 12.5, 3, np.array([30, 10]), [[tile] * 8, [tile]], [["a"] * 8, ["<b>"]], [], SiteIndex(0.25, 0.002)
    )
    card = Card("co<hort", "tiles", 40, 2, 1, {"encoder": "x<y"}, [of_k])
    folder, books = tmp_path / "c.card", {2: Codebook(np.eye(2, dtype=np.float32))}
    write_books(tmp_path / "c.safetensors", books, card)
    (folder / "left.txt").write_text("over")
    write_books(tmp_path / "c.safetensors", books, card)
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "index.html", "inertia.png", "k2.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.card", "c.safetensors"]
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "<b>" not in text.replace("<b>Look", "") and "co&lt;hort" in text and "x&lt;y" in text
    links = Links()
    links.feed(text)
    assert {"inertia.png", "k2.png"} <= set(links.found)
    assert all((folder / link).exists() for link in links.found if not link.startswith("#"))
    numbers = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert numbers["of_k"][0]["counts"] == [30, 10]
    assert numbers["of_k"][0]["site"] == {"share": 0.25, "chance": 0.002} and "0.25 (chance 0.002)" in text
    sheet = np.asarray(Image.open(folder / "k2.png").convert("RGB"))
    assert (sheet == tile[0, 0]).all(-1).sum() == 9 * 96 * 96  # every picture is on the sheet, whole
