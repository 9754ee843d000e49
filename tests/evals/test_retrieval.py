"""MRR, H@k and PRE: against a direct computation, hand numbers, ties, chunks and devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.evals import _queries, prediction, retrieval
from jaxequi.groups import quaternions


@jax.tree_util.Partial
def turned(embedding, z):
    """A predictor that is right for the embeddings of `ideal`."""
    return jax.vmap(lambda e, q: jnp.asarray(quaternions.to_matrix(q)).T @ e)(embedding, z)


def ideal(objects, views, seed=0):
    """Embeddings R^-1 a of a vector a of each object: what a perfect predictor turns."""
    random = np.random.default_rng(seed)
    latent = random.uniform(-np.pi / 2, np.pi / 2, (objects, views, 7))
    pose = quaternions.from_euler_xyz(latent[..., :3])
    axis = random.normal(size=(objects, 1, 3, 1))
    embedding = np.swapaxes(quaternions.to_matrix(pose), -1, -2) @ axis
    return {
        "embedding": embedding[..., 0].astype(np.float32),
        "latent": latent,
        "relation": quaternions.relative(pose[:, :1], pose).astype(np.float32),
    }


def noisy(objects, views, width, seed=0):
    random = np.random.default_rng(seed)
    return {
        **ideal(objects, views, seed),
        "embedding": random.normal(size=(objects, views, width)).astype(np.float32),
    }


def mixing(width, seed=0):
    a = np.random.default_rng(seed).normal(size=(4, width, width)).astype(np.float32)
    return jax.tree_util.Partial(lambda a, h, z: jnp.einsum("bk,kij,bj->bi", z, a, h), a)


def test_a_perfect_predictor_finds_every_view():
    views = ideal(6, 10)
    assert (retrieval.ranks(turned, views) == 1).all()
    metrics = prediction.evaluate({"val": views}, turned, modes=["val-val"])
    assert metrics["val-val/pre"] < 1e-6


@pytest.mark.parametrize("normalise", [True, False])
def test_ranks_and_nearest_are_those_of_the_whole_matrix(normalise, monkeypatch):
    train, val, predict = noisy(5, 7, 4, 1), noisy(11, 7, 4, 2), mixing(4)
    # several tiles, slabs and blocks, the last of each not full
    monkeypatch.setattr(retrieval, "AT_ONCE", 56)
    monkeypatch.setattr(prediction, "TILE", 20)
    monkeypatch.setattr(prediction, "SLAB", 56)
    monkeypatch.setattr(prediction, "BLOCK", 16)
    asked = np.stack(
        [predict(np.repeat(e[:1], 7, 0), z) for e, z in zip(val["embedding"], val["relation"])]
    )
    near = val["embedding"]
    if normalise:
        asked = asked / np.linalg.norm(asked, axis=-1, keepdims=True)
        near = near / np.linalg.norm(near, axis=-1, keepdims=True)
    similarity = np.einsum("nve,nwe->nvw", asked, near)
    own = np.einsum("nvv->nv", similarity)[..., None]
    expected = 1 + (similarity > own).sum(-1)
    np.testing.assert_array_equal(retrieval.ranks(predict, val, normalise=normalise), expected)
    without = 1 + (similarity[..., 1:] > own).sum(-1)[:, 1:]
    np.testing.assert_array_equal(
        retrieval.ranks(predict, val, normalise=normalise, source=False), without
    )

    flat = [v["embedding"].reshape(-1, 4) for v in (train, val)]
    every = np.concatenate(flat)
    if normalise:
        every = every / np.linalg.norm(every, axis=-1, keepdims=True)
    found = prediction.nearest(predict, val, flat, normalise=normalise)
    np.testing.assert_array_equal(found, np.argmax(asked @ every.T, axis=-1))


def test_one_device_and_eight_agree():
    views, predict = noisy(5, 6, 4), mixing(4)
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    for function in (
        retrieval.ranks,
        lambda *args, mesh: prediction.nearest(
            *args, [views["embedding"].reshape(-1, 4)], mesh=mesh
        ),
    ):
        np.testing.assert_array_equal(
            function(predict, views, mesh=one),
            function(predict, views, mesh=_queries.row_of_devices()),
        )


def test_ties_count_in_favour_and_the_first_of_equal_candidates_is_found():
    views = noisy(3, 5, 4)
    views["embedding"] = np.ones_like(views["embedding"])
    assert (retrieval.ranks(mixing(4), views) == 1).all()
    twice = np.repeat(views["embedding"].reshape(-1, 4), 2, axis=0)
    assert (prediction.nearest(mixing(4), views, [twice]) == 0).all()


def test_scores():
    assert retrieval.scores(np.array([1, 2, 4, 20])) == {
        "mrr": pytest.approx(1.8 / 4),
        "hit@1": 0.25,
        "hit@2": 0.5,
        "hit@5": 0.75,
        "hit@10": 0.75,
    }


def test_chance():
    views = noisy(400, 50, 8)
    metrics = retrieval.evaluate({"val": views}, mixing(8))
    assert metrics["val-val/mrr"] == pytest.approx(np.mean(1 / np.arange(1, 51)), abs=0.005)
    metrics = prediction.evaluate({"val": views}, mixing(8), modes=["val-val"])
    assert metrics["val-val/pre"] == pytest.approx(0.627, abs=0.01)


def test_what_does_not_fit_is_told():
    views = noisy(3, 5, 4)
    with pytest.raises(ValueError, match="lack relation"):
        retrieval.ranks(turned, {k: v for k, v in views.items() if k != "relation"})
    with pytest.raises(ValueError, match="one n and V"):
        retrieval.ranks(turned, views | {"latent": views["latent"][:, :4]})
    with pytest.raises(ValueError, match="2 columns"):
        retrieval.ranks(turned, views | {"latent": views["latent"][..., :2]})
    with pytest.raises(ValueError, match=r"val-al.*val-all"):
        prediction.evaluate({"val": views}, mixing(4), modes=["val-al"])
    with pytest.raises(ValueError, match="needs the set 'train'"):
        prediction.evaluate({"val": views}, mixing(4), modes=["val-all"])
    bad = views | {"embedding": np.where(views["embedding"] > 1, np.nan, views["embedding"])}
    with pytest.raises(ValueError, match="not finite"):
        prediction.nearest(mixing(4), views, [bad["embedding"].reshape(-1, 4)])
