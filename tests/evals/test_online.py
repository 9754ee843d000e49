"""Scores of the online heads over a whole set: by hand, and equal to those of one large batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.errors import Refusal
from jaxequi.evals import online
from jaxequi.groups import quaternions
from jaxequi.methods import with_online_heads
from jaxequi.types import Method, Output

PARTS = {"representation": (3, 2), "embedding": (0, 4)}
N, CLASSES = 24, 7


def the_set():
    random = np.random.default_rng(0)
    features = {
        name: random.normal(size=(N, 2, sum(parts))).astype(np.float32)
        for name, parts in PARTS.items()
    }
    return features, {
        "views": np.zeros((N, 2, 1), np.float32),
        "label": random.integers(0, CLASSES, N).astype(np.int32),
        "latent": random.uniform(-1, 1, (N, 2, 7)).astype(np.float32),
    }


@pytest.mark.parametrize("every_part", [False, True])
def test_scores_are_those_that_training_logs_of_a_batch(every_part):
    features, batch = the_set()
    method = with_online_heads(
        Method(
            init=lambda key, batch: ({}, {}),
            loss=lambda *_: (jnp.zeros(()), Output({}, {}, features)),
            encode=lambda *_: features,
            parts=PARTS,
        ),
        num_classes=CLASSES,
        features=tuple(PARTS),
        relation="rotation",
        every_part=every_part,
    )
    params, _ = method.init(jax.random.key(0), batch)
    _, output = method.loss(params, {}, batch, None, None)
    encoded = jax.tree.map(np.asarray, method.encode(params, {}, None))
    found = online.evaluate({"val": {**encoded, **batch}}, relation="rotation")
    logged = {k.removeprefix("online/"): v for k, v in output.metrics.items() if "/" in k}
    logged.pop("loss")
    assert set(found) == set(logged)
    asked = {name.split("/")[1] for name in found if name.startswith("r2/")}
    assert any(name.endswith("-inv") for name in asked) == every_part
    asked = {name.split("/")[1] for name in found if name.startswith("top1/")}
    assert any(name.endswith("-equi") for name in asked) == every_part
    for name, value in found.items():
        np.testing.assert_allclose(value, logged[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_by_hand():
    _, batch = the_set()
    pose = quaternions.relative_pose(batch["latent"][:, 0], batch["latent"][:, 1])
    sure = 20 * np.eye(CLASSES)[batch["label"]]
    views = np.stack([sure, np.roll(sure, 1, axis=-1)], axis=1)  # right in view 1, wrong in view 2
    off = pose.copy()
    off[:, 1] = pose[:, 1].mean()
    outputs = {"logits/representation": views, "relation/embedding": off}
    found = online.evaluate({"val": {"online": outputs, **batch}}, relation="rotation")
    assert found["top1/representation"] == 0.5
    np.testing.assert_allclose(found["cross_entropy/representation"], 10, rtol=1e-5)
    columns = [found[f"r2_{c}/embedding"] for c in "xyzw"]
    np.testing.assert_allclose(columns, [1, 0, 1, 1], atol=1e-6)
    lost = np.var(pose[:, 1]) * N
    total = np.sum((pose - pose.mean()) ** 2)
    np.testing.assert_allclose(found["r2/embedding"], 1 - lost / total, rtol=1e-5)


def test_classes_alone_need_no_latents():
    assert online.reads() == ("online", "label")
    assert online.reads(relation="rotation") == ("online", "label", "latent")
    logits = np.zeros((N, 1, CLASSES))
    found = online.evaluate(
        {"val": {"online": {"logits/x": logits}, "label": the_set()[1]["label"]}}
    )
    assert set(found) == {"cross_entropy/x", "top1/x", "top5/x"}
    assert found["cross_entropy/x"] == pytest.approx(np.log(CLASSES))


@pytest.mark.parametrize("relation", ["rotation", None])
def test_heads_of_another_relation_are_refused(relation):
    _, batch = the_set()
    val = {"online": {"relation/embedding": np.zeros((N, 6))}, **batch}
    with pytest.raises(Refusal, match=f"tell 6 numbers.*{relation!r}.*evals.online.relation"):
        online.evaluate({"val": val}, relation=relation)
