"""MRR, H@k and PRE: against a direct computation, hand numbers, ties, chunks and devices."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.errors import Refusal
from jaxequi.evals import _queries, prediction, retrieval
from jaxequi.groups import quaternions
from jaxequi.groups import relation as relations
from jaxequi.types import Predictor, Relation
from tests.flags import QUICK


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


def measured():
    """Both evaluations of a noisy set, on all devices of all processes."""
    views, predict = noisy(6, 5, 4), mixing(4)
    ranks = retrieval.ranks(predict, views)
    return {**retrieval.scores(ranks), **prediction.errors({"val": views}, predict, modes=MODES)}


MODES = ("val-val",)
CHILD = """
import json, sys, jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from tests.evals.test_retrieval import measured
print(json.dumps(measured()))
"""


def test_two_processes_measure_what_one_does():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{QUICK} --xla_force_host_platform_device_count=2"
    two = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, address, str(number)],
            cwd=pathlib.Path(__file__).parents[2],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0]
    for one in said:
        assert json.loads(one.splitlines()[-1]) == pytest.approx(measured(), rel=1e-5)


def test_a_perfect_predictor_finds_every_view():
    views = ideal(6, 10)
    assert (retrieval.ranks(turned, views) == 1).all()
    assert prediction.errors({"val": views}, turned, modes=["val-val"])["val-val"] < 1e-6


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

    every = np.concatenate([v["embedding"].reshape(-1, 4) for v in (train, val)])
    if normalise:
        every = every / np.linalg.norm(every, axis=-1, keepdims=True)
    found, errors = prediction.nearest(predict, val, [train, val], normalise=normalise)
    np.testing.assert_array_equal(found, np.argmax(asked @ every.T, axis=-1))
    pose = [quaternions.from_euler_xyz(v["latent"][..., :3]) for v in (train, val)]
    other = np.concatenate([p.reshape(-1, 4) for p in pose])[found]
    np.testing.assert_allclose(errors, 1 - np.sum(pose[1] * other, -1) ** 2, atol=1e-6)


def test_one_device_and_eight_agree():
    views, predict = noisy(5, 6, 4), mixing(4)
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    several = _queries.row_of_devices()
    np.testing.assert_array_equal(
        retrieval.ranks(predict, views, mesh=one), retrieval.ranks(predict, views, mesh=several)
    )
    first, second = (prediction.nearest(predict, views, [views], mesh=m) for m in (one, several))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_allclose(first[1], second[1], atol=1e-6)


def one_row_per_object(embedding):
    return np.broadcast_to(embedding[:, :1], embedding.shape)


def rounded_to_bfloat16(embedding):
    """A spread that bfloat16 does not show; sixteen of each object's views one by one."""
    kept = jnp.asarray(1 + 1e-4 * embedding, jnp.bfloat16)
    return np.asarray(kept, np.float32)


COLLAPSED = {
    "constant": np.ones_like,
    "zero": np.zeros_like,
    "one row per object": one_row_per_object,
    "rounded to bfloat16": rounded_to_bfloat16,
}


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("name", COLLAPSED)
def test_collapsed_embeddings_score_as_a_guess(name, normalise):
    views = noisy(200, 50, 8)
    views["embedding"] = COLLAPSED[name](views["embedding"])
    ranks = retrieval.ranks(mixing(8), views, normalise=normalise)
    assert (ranks == 25.5).all()  # the mean rank of 50
    scores = retrieval.scores(ranks)
    assert scores["mrr"] == pytest.approx(1 / 25.5)
    assert scores["hit@1"] == scores["hit@10"] == 0
    without = retrieval.ranks(mixing(8), views, normalise=normalise, source=False)
    assert (without == 25).all()  # of 49
    small = {key: array[:40] for key, array in views.items()}
    small["latent"] = np.array(small["latent"])
    small["latent"][0, 0, :3] = 0  # upright: always to find the first candidate would score 0.45
    pre = prediction.errors({"val": small}, mixing(8), modes=["val-val"], normalise=normalise)
    assert pre["val-val"] == pytest.approx(0.627, abs=0.01)


def test_part_of_a_tie_is_its_mean_rank():
    views = noisy(1, 5, 3)
    # the prediction is the source, (1, 0, 0); similarities 1, 0, 0, 0, -1
    views["embedding"][0] = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, -1, 0], [-1, 0, 0]]
    keep = jax.tree_util.Partial(lambda e, z: e)
    np.testing.assert_array_equal(retrieval.ranks(keep, views), [[1, 3, 3, 3, 5]])
    np.testing.assert_array_equal(retrieval.ranks(keep, views, source=False), [[2, 2, 2, 4]])
    found, error = prediction.nearest(keep, views, [views, views])
    assert (found == 0).all()  # twice there, at 0 and 5: the first is named
    pose = quaternions.from_euler_xyz(views["latent"][0, :, :3])
    np.testing.assert_allclose(error[0], 1 - (pose @ pose[0]) ** 2, atol=1e-6)
    # equally near candidates in two blocks and two sets: the mean of their errors
    views["embedding"][0, 2:] = views["embedding"][0, 1]
    views["embedding"][0, 0] = views["embedding"][0, 1]
    other = noisy(1, 5, 3, seed=1) | {"embedding": views["embedding"]}
    poses = np.concatenate([pose, quaternions.from_euler_xyz(other["latent"][0, :, :3])])
    _, error = prediction.nearest(keep, views, [views, other])
    np.testing.assert_allclose(error[0], 1 - np.mean((pose @ poses.T) ** 2, axis=1), atol=1e-6)


@pytest.mark.parametrize("size", [1e20, 1e-12])
def test_scores_do_not_depend_on_the_size_of_an_embedding(size):
    views, predict = noisy(20, 10, 4), mixing(4)
    large = views | {"embedding": views["embedding"] * np.float32(size)}
    for normalise in (True, False):
        np.testing.assert_array_equal(
            retrieval.ranks(predict, large, normalise=normalise and size > 1),
            retrieval.ranks(predict, views, normalise=normalise and size > 1),
        )
        for ours, expected in zip(
            prediction.nearest(predict, large, [large], normalise=normalise and size > 1),
            prediction.nearest(predict, views, [views], normalise=normalise and size > 1),
        ):
            np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(("objects", "count"), [(1, 2), (1, 50), (3, 1), (9, 3)])
def test_sets_smaller_than_a_chunk(objects, count):
    views, predict = noisy(objects, count, 4), mixing(4)
    assert retrieval.ranks(predict, views).shape == (objects, count)
    tiny = noisy(1, count, 4, seed=1)
    for candidates in ([views], [views, tiny], [tiny]):
        found, error = prediction.nearest(predict, views, candidates)
        assert found.shape == error.shape == (objects, count)
        assert found.max() < count * sum(len(c["embedding"]) for c in candidates)
        assert np.isfinite(error).all()


def test_scores():
    assert retrieval.scores(np.array([1, 2, 4, 20])) == {
        "mrr": pytest.approx(1.8 / 4),
        "hit@1": 0.25,
        "hit@2": 0.5,
        "hit@5": 0.75,
        "hit@10": 0.75,
    }


def test_chance():
    views = noisy(100, 50, 8)
    scores = retrieval.scores(retrieval.ranks(mixing(8), views))
    assert scores["mrr"] == pytest.approx(np.mean(1 / np.arange(1, 51)), abs=0.005)
    errors = prediction.errors({"val": views}, mixing(8), modes=["val-val"])
    assert errors["val-val"] == pytest.approx(0.627, abs=0.01)


def test_what_does_not_fit_is_told():
    views = noisy(3, 5, 4)
    with pytest.raises(ValueError, match="lack relation"):
        retrieval.ranks(turned, {k: v for k, v in views.items() if k != "relation"})
    with pytest.raises(ValueError, match="one n and V"):
        retrieval.ranks(turned, views | {"latent": views["latent"][:, :4]})
    with pytest.raises(ValueError, match="2 columns"):
        retrieval.ranks(turned, views | {"latent": views["latent"][..., :2]})
    with pytest.raises(ValueError, match=r"val-al.*val-all"):
        prediction.errors({"val": views}, mixing(4), modes=["val-al"])
    with pytest.raises(ValueError, match="needs the set 'train'"):
        prediction.errors({"val": views}, mixing(4), modes=["val-all"])
    bad = views | {"embedding": np.where(views["embedding"] > 1, np.nan, views["embedding"])}
    with pytest.raises(ValueError, match="not finite"):
        prediction.nearest(mixing(4), views, [bad])
    lost = jax.tree_util.Partial(lambda h, z: h * np.float32(np.inf))
    with jax.debug_nans(False):
        with pytest.raises(ValueError, match="a prediction is not finite"):
            prediction.nearest(lost, views, [views])
        assert (retrieval.ranks(lost, views) == 5).all()  # the last of five


def rendered(objects, views, seed=0):
    """What a set gives an evaluation of a predictor: embeddings and latents of all its views."""
    found = noisy(objects, views, 4, seed)
    return {"predictable": found["embedding"], "latent": found["latent"]}


def test_a_predictors_own_relation_is_asked_from_view_0():
    """A relation of one number, an angle in the plane; each view is at its own."""
    between = Relation(
        ("a",), lambda batch: (batch["latent"][:, 1] - batch["latent"][:, 0])[:, -1:]
    )

    def turn(e, z):
        c, s = jnp.cos(z[:, 0]), jnp.sin(z[:, 0])
        return jnp.stack([c * e[:, 0] - s * e[:, 1], s * e[:, 0] + c * e[:, 1]], axis=-1)

    predictor = Predictor(jax.tree_util.Partial(turn), between)
    latent = np.random.default_rng(0).uniform(-1, 1, (5, 8, 7))
    embedding = np.stack([np.cos(latent[..., -1]), np.sin(latent[..., -1])], axis=-1)
    given = {"val": {"predictable": embedding.astype(np.float32), "latent": latent}}
    assert retrieval.evaluate(given, predictor)["mrr"] == 1
    backwards = predictor._replace(predict=jax.tree_util.Partial(lambda e, z: turn(e, -z)))
    assert retrieval.evaluate(given, backwards)["mrr"] < 0.8
    views = _queries.views(given["val"], between)
    np.testing.assert_allclose(
        views["relation"][..., 0], latent[..., -1] - latent[:, :1, -1], rtol=1e-6, atol=1e-7
    )


def test_evaluations_are_the_scores_of_their_sets():
    sets = {"train": rendered(4, 6, 1), "val": rendered(7, 6, 2)}
    predictor = Predictor(mixing(4), relations.relation("rotation"))
    assert retrieval.reads() == prediction.reads() == ("predictable", "latent")
    views = {name: _queries.views(one, predictor.relation) for name, one in sets.items()}
    for normalise in (True, False):
        found = retrieval.evaluate({"val": sets["val"]}, predictor, normalise=normalise)
        ranks = retrieval.ranks(predictor.predict, views["val"], normalise=normalise)
        assert found == retrieval.scores(ranks)
        found = prediction.evaluate(sets, predictor, normalise=normalise)
        errors = prediction.errors(views, predictor.predict, normalise=normalise)
        assert found == {f"pre/{mode}": value for mode, value in errors.items()}
    without = retrieval.evaluate({"val": sets["val"]}, predictor, source=False)
    assert without == retrieval.scores(
        retrieval.ranks(predictor.predict, views["val"], source=False)
    )
    # The relation of a view to itself is no turn, and of the same pose for both sets' tables.
    np.testing.assert_allclose(views["val"]["relation"][:, 0], [[0, 0, 0, 1]] * 7, atol=1e-6)
    pose = quaternions.from_euler_xyz(sets["val"]["latent"][..., :3])
    np.testing.assert_allclose(
        views["val"]["relation"], quaternions.relative(pose[:, :1], pose), atol=1e-6
    )
    prediction.check([4, 7], modes=["val-all"])
    with pytest.raises(Refusal, match=r"unknown mode 'val-al'.*val-all"):
        prediction.check([4, 7], modes=["val-al"])
