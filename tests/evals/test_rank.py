"""RankMe of matrices whose singular values are known."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.evals import rank

WIDTH = 6


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def with_values(values, rows=20):
    """Rows f64[rows, WIDTH] of these singular values, in no special basis."""
    diagonal = np.zeros((rows, WIDTH))
    np.fill_diagonal(diagonal, values)
    return rotation(rows, 0) @ diagonal @ rotation(WIDTH, 1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_directions_of_one_strength_count_one_each(scale):
    # The share added to every singular value is worth a millionth here.
    assert rank.effective_rank(scale * np.eye(WIDTH)) == pytest.approx(WIDTH, rel=1e-5)
    for count in (1, 2, 5):
        rows = with_values([scale] * count + [0] * (WIDTH - count))
        assert rank.effective_rank(rows) == pytest.approx(count, rel=1e-4)


def test_one_direction():
    rows = np.outer(np.arange(1.0, 9), np.arange(1.0, WIDTH + 1))
    assert rank.effective_rank(rows) == pytest.approx(1, rel=1e-4)
    assert rank.effective_rank(np.ones((7, WIDTH))) == pytest.approx(1, rel=1e-4)


def test_uneven_strengths_by_hand():
    """Shares 1/2, 1/4, 1/4 have the entropy 3/2 log 2; the values count, not their squares."""
    rows = with_values([2, 1, 1, 0, 0, 0])
    assert rank.effective_rank(rows) == pytest.approx(2**1.5, rel=1e-4)


def test_nothing_at_all():
    """Without a share of anything only what is added is left: no error, and no rank."""
    assert rank.effective_rank(np.zeros((5, WIDTH))) < 1.001


def test_all_views_of_the_held_out_set():
    assert rank.SETS == ("val",)
    assert rank.reads() == ("representation",)
    assert rank.reads(feature="embedding") == ("embedding",)
    rows = with_values([3, 1, 1, 1, 0, 0], rows=24).astype(np.float32)
    sets = {"val": {"embedding": rows.reshape(8, 3, WIDTH)}}
    found = rank.evaluate(sets, feature="embedding")
    assert found == {"effective_rank": pytest.approx(rank.effective_rank(rows))}
    shares = np.array([3, 1, 1, 1]) / 6
    assert found["effective_rank"] == pytest.approx(
        np.exp(-np.sum(shares * np.log(shares))), rel=1e-4
    )


def test_as_many_rows_as_the_paper_takes(monkeypatch):
    monkeypatch.setattr(rank, "ROWS", 4)
    rows = np.concatenate([np.eye(WIDTH)[[0, 1, 0, 1]], np.eye(WIDTH)])
    sets = {"val": {"representation": rows[:, None]}}
    assert rank.evaluate(sets)["effective_rank"] == pytest.approx(2, rel=1e-4)
