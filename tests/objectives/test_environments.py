"""Environments and their penalty: against the plain loops of their definition, and by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.errors import Refusal
from jaxequi.objectives import environments


def plain_table(features, labels, classes, debias):
    """Pair by pair, class by class."""
    f = features / np.linalg.norm(features, axis=1, keepdims=True)
    table = np.full((classes, len(f)), -1, np.int8)
    for k in range(classes):
        others = np.flatnonzero(labels != k)
        score = {i: np.mean([f[i] @ f[a] for a in np.flatnonzero(labels == k)]) for i in others}
        if debias:
            bias = {
                c: np.mean([score[i] for i in others if labels[i] == c]) for c in {*labels} - {k}
            }
            score = {i: np.float32(s - bias[labels[i]]) for i, s in score.items()}
        order = sorted(others, key=lambda i: (-np.float32(score[i]), i))
        half = (len(order) + 1) // 2
        table[k, order[:half]], table[k, order[half:]] = 0, 1
    return table


@pytest.mark.parametrize(
    ("count", "classes", "width", "debias"), [(23, 4, 5, True), (40, 3, 2, False)]
)
def test_the_table_is_that_of_all_pairs(count, classes, width, debias, monkeypatch):
    monkeypatch.setattr(environments, "BLOCK", 7)
    random = np.random.default_rng(count)
    features = random.normal(size=(count, width)).astype(np.float32)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, count - classes)])
    found = environments.assign(features, labels, classes, debias)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, plain_table(features, labels, classes, debias))


def test_equal_scores_go_by_their_place():
    """Five others, all alike: the first three are environment 0, wherever a block ends."""
    features = np.ones((7, 3), np.float32) * np.arange(1, 8)[:, None]
    labels = np.array([0, 1, 1, 0, 1, 1, 1])
    [first, second] = environments.assign(features, labels, 2)
    assert first.tolist() == [-1, 0, 0, -1, 0, 1, 1]
    assert second.tolist() == [0, -1, -1, 1, -1, -1, -1]


def test_what_cannot_vary_is_refused():
    labels = np.array([0, 0, 1])
    table = environments.assign(np.eye(3, dtype=np.float32), labels, 2)
    with pytest.raises(Refusal, match="1 of 2 classes, such as 0"):
        environments.check(table, labels)
    labels = np.array([0, 0, 1, 1])
    table = environments.assign(np.eye(4, dtype=np.float32), labels, 3)
    with pytest.raises(Refusal, match="1 of 3 classes, such as 2"):
        environments.check(table, labels)


def a_batch(count=12, classes=5, width=6, seed=0):
    random = np.random.default_rng(seed)
    labels = np.tile(random.integers(0, classes - 1, count), 2)  # the last class is absent
    index = np.tile(np.arange(count) * 3, 2)
    table = random.integers(0, 2, (classes, 3 * count)).astype(np.int8)
    return random.normal(size=(2 * count, width)).astype(np.float32), labels, index, table


def looped(rows, labels, index, table, temperature):
    """The reference's loop over classes and environments in f64; with each loss its derivative."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = (unit @ unit.T).astype(np.float64) / temperature
    found = {}
    for k in sorted(set(labels.tolist())):
        for e in range(2):
            chosen = np.flatnonzero((labels == k) | (np.maximum(table[k, index], 0) == e))

            def loss(scale, k=k, chosen=chosen):
                terms = []
                for i in np.flatnonzero(labels == k):
                    others = chosen[chosen != i]
                    total = np.log(np.exp(scale * similarity[i, others]).sum())
                    positive = others[labels[others] == k]
                    terms.append(total - scale * similarity[i, positive].mean())
                return temperature / 0.07 * np.mean(terms)

            found[k, e] = loss(1.0), (loss(1 + 1e-5) - loss(1 - 1e-5)) / 2e-5
    return found


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_both_penalties_are_those_of_the_loop(temperature):
    rows, labels, index, table = a_batch()
    given = jnp.asarray(labels), jnp.asarray(index)

    @jax.jit
    def ours(rows):
        seen = environments.look_up(jnp.asarray(table), *given)
        risks = environments.risks(rows, given[0], seen, temperature)
        return risks, environments.rex(risks), environments.irm(risks)

    risks, rex, irm = ours(jnp.asarray(rows))
    loop = looped(rows, labels, index, table, temperature)
    classes = sorted({k for k, _ in loop})
    assert len(classes) == 4
    for (k, e), (loss, slope) in loop.items():
        at = np.flatnonzero(labels == k)[0]
        np.testing.assert_allclose(risks.loss[at, e], loss, rtol=1e-5)
        np.testing.assert_allclose(risks.slope[at, e], slope, rtol=1e-4, atol=1e-5)
    losses = np.array([[loop[k, e][0] for e in range(2)] for k in classes])
    slopes = np.array([[loop[k, e][1] for e in range(2)] for k in classes])
    np.testing.assert_allclose(rex, losses.var(axis=1, ddof=1).mean(), rtol=1e-4)
    np.testing.assert_allclose(irm, (slopes**2).mean(), rtol=1e-4)


def test_by_hand():
    """Classes 0 and 1, two rows each, all directions equal: a row names one of all that it sees."""
    rows, labels = jnp.ones((4, 2)), jnp.array([0, 0, 1, 1])
    # Both rows of class 1 are in environment 0 of class 0; of class 1 there is one in each.
    environment = jnp.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
    risks = jax.jit(environments.risks)(rows, labels, environment, 0.07)
    expected = np.log([[3, 1], [3, 1], [2, 2], [2, 2]])
    np.testing.assert_allclose(risks.loss, expected, atol=1e-6)
    np.testing.assert_allclose(risks.slope, 0, atol=1e-5)
    np.testing.assert_allclose(environments.rex(risks), np.log(3) ** 2 / 2 / 2, rtol=1e-5)


def test_a_class_of_one_row_counts_for_nothing_and_gives_no_gradient_that_is_none():
    rows, labels, index, table = a_batch()
    labels = labels.copy()
    labels[3] = 4  # alone
    seen = environments.look_up(jnp.asarray(table), jnp.asarray(labels), jnp.asarray(index))

    def penalty(rows):
        risks = environments.risks(rows, jnp.asarray(labels), seen)
        return environments.rex(risks) + environments.irm(risks), risks.share

    grads, share = jax.jit(jax.grad(penalty, has_aux=True))(jnp.asarray(rows))
    assert share[3] == 0
    np.testing.assert_allclose(share.sum(), 1, rtol=1e-6)
    assert np.isfinite(grads).all()
    alone = jnp.ones((1, 2)), jnp.zeros(1, int), jnp.zeros((1, 1), int)
    assert jax.jit(lambda *given: environments.rex(environments.risks(*given)))(*alone) == 0


def test_a_file_holds_a_table(tmp_path):
    table = environments.Saved(np.array([[0, 1, -1]], np.int8), "abc", "def")
    environments.save(tmp_path / "table.npz", table)
    found = environments.read(tmp_path / "table.npz")
    np.testing.assert_array_equal(found.table, table.table)
    assert found[1:] == ("abc", "def")
    np.savez(tmp_path / "floats.npz", table=np.zeros((2, 3)), start="", data="")
    (tmp_path / "none.npz").write_bytes(b"none")
    for name, message in (
        ("floats", "int8"),
        ("none", "no table"),
        ("nowhere", "prepare.environments"),
    ):
        with pytest.raises(Refusal, match=message):
            environments.read(tmp_path / f"{name}.npz")
