"""Both matchings of §3.5.2, worked out by hand on 4 × 4 pixels."""

import numpy as np
import pytest

from fseg_jax.errors import InputError
from fseg_jax.evaluation.protocols.matching import confuse, match

pytestmark = pytest.mark.smoke

# Truth, and clusters; cluster 2 has three pixels of category 0 and two of category 2, which has no others.
TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [2, 2, 0, 1]])
CLUSTERS = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 2, 1], [2, 2, 2, 3]])
COUNTS = np.array([[5, 0, 0], [0, 5, 0], [3, 0, 2], [0, 1, 0]])


def test_counts_of_the_example() -> None:
    joint = np.zeros((4, 3), int)
    np.add.at(joint, (CLUSTERS, TRUTH), 1)
    assert (joint == COUNTS).all()


def test_plain_matching_by_hand() -> None:
    matching = match(COUNTS)
    assert matching.categories.tolist() == [0, 1, 0, 1]  # cluster 2: 3 pixels of category 0, 2 of category 2
    assert confuse(matching.categories, COUNTS).tolist() == [[8, 0, 0], [0, 6, 0], [2, 0, 0]]
    assert matching.learnt_on == "train" and not matching.balanced and not matching.unseen.any()


def test_balanced_matching_by_hand() -> None:
    matching = match(COUNTS, balanced=True, learnt_on="test")
    assert matching.categories.tolist() == [0, 1, 2, 1]  # cluster 2: 3 of 8 pixels against 2 of 2
    assert confuse(matching.categories, COUNTS).tolist() == [[5, 0, 3], [0, 6, 0], [0, 0, 2]]
    assert matching.learnt_on == "test" and matching.balanced


@pytest.mark.parametrize("balanced", [False, True])
def test_unseen_clusters_get_the_most_frequent_category(balanced: bool) -> None:
    matching = match(np.array([[0, 1, 0], [0, 0, 0], [0, 0, 9]]), balanced=balanced)
    assert matching.unseen.tolist() == [False, True, False]
    assert matching.categories.tolist() == [1, 2, 2]


def test_ties_go_to_the_first_category_and_batches_are_kept() -> None:
    assert match(np.array([[2, 2], [1, 3]])).categories.tolist() == [0, 1]
    many = np.stack([COUNTS, 2 * COUNTS])
    assert confuse(match(COUNTS).categories, many).tolist()[1] == [[16, 0, 0], [0, 12, 0], [4, 0, 0]]


def test_nothing_to_learn_from_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no annotated pixel in the train split"):
        match(np.zeros((4, 3), int))
