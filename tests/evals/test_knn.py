"""Votes of the nearest neighbours against all pairs in float64, ties, views and chunks."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.errors import Refusal
from jaxequi.evals import knn

CLASSES, WIDTH, TEMPERATURE = 7, 5, 0.07


def a_set(examples, views=1, seed=0):
    random = np.random.default_rng(seed)
    return {
        "representation": random.normal(size=(examples, views, WIDTH)).astype(np.float32),
        "label": random.integers(0, CLASSES, examples).astype(np.int32),
    }


def expected(bank, labels, queries, k, temperature=TEMPERATURE):
    """Every similarity in float64; of equal ones the first is nearer."""
    bank, queries = (x.astype(np.float64) for x in (bank, queries))
    bank = bank / np.linalg.norm(bank, axis=-1, keepdims=True)
    queries = queries / np.linalg.norm(queries, axis=-1, keepdims=True)
    similarity = queries @ bank.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(queries), CLASSES))
    for row, near in enumerate(nearest):
        for neighbour in near:
            votes[row, labels[neighbour]] += np.exp(similarity[row, neighbour] / temperature)
    return votes


# Chunks that hold all, that divide the sets, that do not, and blocks smaller than k.
@pytest.mark.parametrize(
    ("queries", "block"), [(1024, 2**14), (8, 20), (24, 40), (7, 9), (1, 1), (23, 39)]
)
@pytest.mark.parametrize("k", [1, 5, 40])
def test_votes_are_those_of_all_pairs(monkeypatch, queries, block, k):
    monkeypatch.setattr(knn, "QUERIES", queries)
    monkeypatch.setattr(knn, "BLOCK", block)
    train, val = a_set(40, seed=1), a_set(24, seed=2)
    bank, asked = train["representation"][:, 0], val["representation"][:, 0]
    found = knn.votes(bank, train["label"], asked, CLASSES, k, TEMPERATURE)
    assert found.shape == (24, CLASSES)
    np.testing.assert_allclose(
        found, expected(bank, train["label"], asked, k), rtol=1e-4, atol=1e-6
    )


def test_scores_are_shares_of_right_votes():
    train, val = a_set(40, seed=1), a_set(24, seed=2)
    scores = knn.evaluate({"train": train, "val": val}, k=5, temperature=0.5)
    votes = expected(
        train["representation"][:, 0], train["label"], val["representation"][:, 0], 5, 0.5
    )
    # Among classes without a vote the lower counts as larger.
    order = np.argsort(-votes, axis=1, kind="stable")
    for n in (1, 5):
        right = (order[:, :n] == val["label"][:, None]).any(1)
        assert scores[f"top{n}"] == pytest.approx(right.mean())
    assert (scores["k"], scores["temperature"]) == (5, 0.5)
    assert set(scores) == {"top1", "top5", "k", "temperature"}


def test_every_view_is_a_neighbour_and_every_view_asks():
    train, val = a_set(6, views=3, seed=1), a_set(4, views=2, seed=2)
    flat = {
        name: {
            "representation": one["representation"].reshape(-1, 1, WIDTH),
            "label": np.repeat(one["label"], one["representation"].shape[1]),
        }
        for name, one in (("train", train), ("val", val))
    }
    scores = knn.evaluate({"train": train, "val": val}, k=4)
    assert scores == knn.evaluate(flat, k=4)
    # An example whose views are its own nearest neighbours
    assert knn.evaluate({"train": train, "val": train}, k=1)["top1"] == 1


@pytest.mark.parametrize("block", [1, 3, 2**14])
def test_of_equally_near_neighbours_the_first_vote(monkeypatch, block):
    monkeypatch.setattr(knn, "BLOCK", block)
    bank = np.ones((6, WIDTH), np.float32)
    labels = np.array([4, 4, 2, 0, 1, 1], np.int32)
    votes = knn.votes(bank, labels, bank[:2], CLASSES, 3, TEMPERATURE)
    one = np.exp(1 / TEMPERATURE)
    np.testing.assert_allclose(votes, [[0, 0, one, 0, 2 * one, 0, 0]] * 2, rtol=1e-4)


def test_near_is_by_direction_and_in_the_feature_that_is_named():
    """Lengths decide nothing; a near neighbour outweighs two of another class further off."""
    bank = np.float32([[10, 0], [0.1, 0.1], [0.1, 0.1]])[:, None]
    val = {"x": np.float32([[[0.3, 0.01]], [[5.0, 6.0]]]), "label": np.array([0, 1])}
    train = {"x": bank, "label": np.array([0, 1, 1]), "representation": bank[::-1]}
    scores = knn.evaluate({"train": train, "val": val}, k=3, temperature=0.1, feature="x")
    assert scores["top1"] == 1
    # With a temperature that tells no distance apart the majority is right once.
    scores = knn.evaluate({"train": train, "val": val}, k=3, temperature=1e3, feature="x")
    assert scores["top1"] == 0.5


def test_a_class_that_the_training_set_lacks_has_no_vote():
    train = {"representation": np.eye(3, dtype=np.float32)[:, None], "label": np.array([0, 1, 2])}
    val = {"representation": np.eye(3, dtype=np.float32)[:, None], "label": np.array([0, 1, 9])}
    assert knn.evaluate({"train": train, "val": val}, k=1)["top1"] == pytest.approx(2 / 3)


def test_what_it_reads_and_refuses():
    assert knn.SETS == ("train", "val")
    assert knn.reads() == ("representation", "label")
    assert knn.reads(feature="embedding", k=3) == ("embedding", "label")
    knn.check([40, 3], k=40)
    for k in (0, 41):
        with pytest.raises(Refusal, match=f"k={k}: between 1 and the 40 examples"):
            knn.check([40, 100], k=k)
    with pytest.raises(Refusal, match="the 10 examples"):
        knn.check([10, 100])  # by default twenty vote
    with pytest.raises(Refusal, match="temperature=0"):
        knn.check([40, 3], temperature=0)
