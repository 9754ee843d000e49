"""Heads beside a method: what they ask, of what, and what they refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.errors import Refusal
from jaxequi.methods import with_online_heads
from jaxequi.types import Method, Output

BATCH, CLASSES = 6, 4
PARTS = {"representation": (3, 2)}


def a_batch(views=2):
    random = np.random.default_rng(0)
    return {
        "views": jnp.asarray(random.normal(size=(BATCH, views, 5)), jnp.float32),
        "label": jnp.asarray(random.integers(0, CLASSES, BATCH)),
        "latent": jnp.asarray(random.uniform(-1, 1, (BATCH, views, 7)), jnp.float32),
    }


def a_method(parts=PARTS):
    """Features are the views times a parameter; the moving average of it is state."""

    def features(params, views):
        return {"representation": views * params["w"], "embedding": views[..., :3] + params["w"]}

    def loss(params, extra, batch, key, progress):
        value = jnp.sum(params["w"] ** 2)
        return value, Output(extra, {"loss/own": value}, features(params, batch["views"]))

    return Method(
        init=lambda key, batch: ({"w": jnp.ones(())}, {"own": {"mean": jnp.zeros(())}}),
        loss=loss,
        encode=lambda params, extra, views: features(params, views),
        update=lambda params, extra, progress: {"own": {"mean": sum(jax.tree.leaves(params))}},
        parts=parts,
    )


def metrics_of(method, batch):
    params, extra = method.init(jax.random.key(0), batch)
    return method.loss(params, extra, batch, jax.random.key(1), None)[1].metrics


def test_by_default_classes_of_the_representation_and_its_invariant_part():
    """A data set without latents has no relation, and nothing asks for one."""
    batch = a_batch(views=3)
    del batch["latent"]
    found = metrics_of(with_online_heads(a_method(), num_classes=CLASSES), batch)
    assert set(found) == {"loss", "loss/own", "online/loss"} | {
        f"online/{score}/{feature}"
        for score in ("cross_entropy", "top1", "top5")
        for feature in ("representation", "representation-inv")
    }


@pytest.mark.parametrize("views", [1, 2])
def test_a_relation_is_read_off_two_views_alone(views):
    batch = a_batch(views)
    method = with_online_heads(a_method(), num_classes=CLASSES, relation="rotation")
    if views == 1:  # a batch of one view has no relation to be told
        params, extra = method.init(jax.random.key(0), a_batch(2))
        outputs = method.encode(params, extra, batch["views"])["online"]
        assert set(outputs) == {"logits/representation", "logits/representation-inv"}
        return
    found = metrics_of(method, batch)
    told = {name.split("/")[2] for name in found if name.startswith("online/r2/")}
    assert told == {"representation", "representation-equi"}
    for column in "xyzw":
        assert f"online/r2_{column}/representation" in found


@pytest.mark.parametrize("every_part", [False, True])
def test_each_named_feature_is_asked_once(every_part):
    method = with_online_heads(
        a_method(),
        num_classes=CLASSES,
        features=("embedding", "representation"),
        relation="rotation",
        every_part=every_part,
    )
    params, _ = method.init(jax.random.key(0), a_batch())
    parts = {"embedding", "representation", "representation-inv", "representation-equi"}
    labelled = parts if every_part else parts - {"representation-equi"}
    related = parts if every_part else parts - {"representation-inv"}
    expected = {f"label_{part}" for part in labelled} | {f"relation_{part}" for part in related}
    assert set(params["online"]) == expected
    widths = {"embedding": 3, "representation": 5, "-inv": 3, "-equi": 2}
    for part in labelled:
        width = widths.get(part, widths.get(part.removeprefix("representation")))
        assert params["online"][f"label_{part}"]["kernel"].shape == (width, CLASSES)


@pytest.mark.parametrize("whole_parts", [False, True])
def test_a_part_that_is_the_whole_is_asked_once_unless_both_are_asked_for(whole_parts):
    method = with_online_heads(
        a_method({"representation": (5, 0), "embedding": (0, 3)}),
        num_classes=CLASSES,
        features=("representation", "embedding"),
        relation="rotation",
        whole_parts=whole_parts,
    )
    params, _ = method.init(jax.random.key(0), a_batch())
    expected = {f"{kind}_{f}" for kind in ("label", "relation") for f in PARTS | {"embedding": 0}}
    if whole_parts:
        expected |= {"label_representation-inv", "relation_embedding-equi"}
    assert set(params["online"]) == expected


def test_no_gradient_reaches_the_method_and_all_the_heads():
    method = with_online_heads(a_method(), num_classes=CLASSES, relation="rotation")
    batch = a_batch()
    params, extra = method.init(jax.random.key(0), batch)

    def heads_alone(params):
        _, output = method.loss(params, extra, batch, jax.random.key(1), None)
        return output.metrics["online/loss"]

    grads = jax.grad(heads_alone)(params)
    assert grads["w"] == 0
    for leaf in jax.tree.leaves(grads["online"]):
        assert leaf.shape == (0,) or np.abs(leaf).max() > 0
    whole = jax.grad(lambda p: method.loss(p, extra, batch, jax.random.key(1), None)[0])(params)
    assert whole["w"] == 2  # of w^2 at 1


def test_the_methods_own_functions_see_nothing_of_the_heads():
    method = with_online_heads(a_method(), num_classes=CLASSES)
    params, extra = method.init(jax.random.key(0), a_batch())
    assert extra == a_method().init(None, None)[1]
    assert method.update(params, extra, None) == {"own": {"mean": params["w"]}}
    found = method.encode(params, extra, a_batch()["views"])
    own = a_method().encode(params, extra, a_batch()["views"])
    for name, value in own.items():
        np.testing.assert_array_equal(found[name], value)
    assert set(found) == {*own, "online"}


def test_encode_gives_what_training_compares():
    method = with_online_heads(a_method(), num_classes=CLASSES)
    batch = a_batch()
    params, extra = method.init(jax.random.key(0), batch)
    kernel = jax.random.normal(jax.random.key(3), (5, CLASSES))
    params["online"]["label_representation"]["kernel"] = kernel
    logits = method.encode(params, extra, batch["views"])["online"]["logits/representation"]
    np.testing.assert_allclose(
        logits,
        batch["views"] @ kernel + params["online"]["label_representation"]["bias"],
        rtol=1e-5,
    )
    found = method.loss(params, extra, batch, jax.random.key(1), None)[1].metrics
    right = np.argmax(logits, -1) == np.asarray(batch["label"])[:, None]
    np.testing.assert_allclose(found["online/top1/representation"], right.mean(), rtol=1e-6)
    logs = jax.nn.log_softmax(logits)
    told = [logs[i, v, batch["label"][i]] for i in range(BATCH) for v in (0, 1)]
    np.testing.assert_allclose(
        found["online/cross_entropy/representation"], -np.mean(told), rtol=1e-5
    )


def test_the_last_view_alone_may_teach_the_heads():
    """As revisitAIRL's classifier, which sees the feature that the last pass left behind."""
    method = with_online_heads(a_method({}), num_classes=CLASSES, last_view=True)
    batch = a_batch(views=3)
    params, extra = method.init(jax.random.key(0), batch)
    head = params["online"]["label_representation"]
    head["kernel"] = jax.random.normal(jax.random.key(3), (5, CLASSES))
    found = method.loss(params, extra, batch, jax.random.key(1), None)[1].metrics
    logits = batch["views"][:, 2] @ head["kernel"] + head["bias"]
    told = jax.nn.log_softmax(logits)[np.arange(BATCH), np.asarray(batch["label"])]
    np.testing.assert_allclose(found["online/loss"], -told.mean(), rtol=1e-5)
    asked = method.encode(params, extra, batch["views"])["online"]["logits/representation"]
    assert asked.shape == (BATCH, 3, CLASSES)  # every view in evaluation


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(Refusal, match="read off two views"):
        with_online_heads(a_method(), num_classes=2, relation="rotation", last_view=True)
    with pytest.raises(Refusal, match="num_classes=0"):
        with_online_heads(a_method(), num_classes=0)
    with pytest.raises(Refusal, match="Did you mean 'rotation'"):
        with_online_heads(a_method(), num_classes=2, relation="rotatoin")
    method = with_online_heads(a_method(), num_classes=2, features=("representation", "logits"))
    with pytest.raises(Refusal, match=r"names logits, .* there is representation, embedding"):
        jax.eval_shape(method.init, jax.random.key(0), a_batch())
