"""IP-IRM in both forms: state, laws, searches, and runs that end in the midst of one."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ipirm as config
from jaxequi import experiment, names
from jaxequi.methods import _ipirm, _partition_search
from jaxequi.methods._partition_search import Search
from jaxequi.nn.norm import BatchNorm
from jaxequi.train import checkpoint, loop
from jaxequi.train import mesh as meshes
from jaxequi.types import OWN, Progress

BATCH, SIZE, FEATURES, EXAMPLES = 16, 6, 8, 24
METHODS = {
    "ipirm": ("ipirm", {"partitions": 2}),
    "mixup": ("ipirm_mixup", {"partitions": 2, "one_by_one": False}),
    "mixup_in_a_loop": ("ipirm_mixup", {"partitions": 2}),
}
PROGRESS = Progress(jnp.int32(0), jnp.float32(0), jnp.float32(0))


class Backbone(nn.Module):
    """A convolution with BatchNorm, of width 8."""

    features: int = FEATURES

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(self.features, (3, 3), use_bias=False)(images)
        return nn.relu(BatchNorm()(x, use_running_average=not train)).mean((1, 2))


def a_batch():
    random = np.random.default_rng(0)
    return {
        "views": random.normal(size=(BATCH, 2, SIZE, SIZE, 3)).astype(np.float32),
        "index": random.permutation(EXAMPLES)[:BATCH].astype(np.int32),
    }


def found(count=2):
    """State after `count` searches; the second partition has one environment alone."""
    split = np.random.default_rng(1).normal(size=(2, EXAMPLES, 2)).astype(np.float32)
    split[1] = [1, 0]
    own = _ipirm.own(2, EXAMPLES, 2)
    return {**own, "partitions": jnp.asarray(split), "count": jnp.int32(count)}


@functools.cache
def stepped(name):
    """A method's gradient, compiled once, its start, and what it gives on the batch."""
    file, options = METHODS[name]
    make = names.find("methods", file)
    method = make(backbone=Backbone(), examples=EXAMPLES, projector="12-10", **options)

    @jax.jit
    def gradient(params, extra, batch, progress=PROGRESS):
        loss = jax.value_and_grad(method.loss, has_aux=True)
        return loss(params, extra, batch, jax.random.key(2), progress)

    params, extra = jax.jit(method.init)(jax.random.key(1), a_batch())
    extra = {**extra, OWN: found()}
    return method, gradient, params, extra, gradient(params, extra, a_batch())


@pytest.mark.parametrize("name", ["ipirm", "mixup"])
def test_state_gradients_and_one_device_equals_eight(name):
    _, gradient, params, extra, ((loss, output), grads) = stepped(name)
    assert jax.tree.structure(output.extra) == jax.tree.structure(extra)
    for before, after in zip(jax.tree.leaves(extra), jax.tree.leaves(output.extra), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    assert all(np.isfinite(value) and value.shape == () for value in output.metrics.values())
    for module, tree in grads.items():
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree)) > 1e-4, module
    mesh = meshes.make_mesh(data=4, fsdp=2)
    batch = meshes.to_global(mesh, a_batch(), BATCH)
    state = jax.device_put((params, extra), meshes.replicated(mesh))
    (spread_loss, spread_output), spread_grads = gradient(*state, batch)
    np.testing.assert_allclose(spread_loss, loss, rtol=2e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(spread_grads), strict=True)
    for one, eight in pairs:
        np.testing.assert_allclose(eight, one, rtol=1e-3, atol=2e-5 * largest)
    pairs = zip(jax.tree.leaves(output.extra), jax.tree.leaves(spread_output.extra), strict=True)
    for one, eight in pairs:
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=2e-6)


def test_an_environment_without_examples_and_a_partition_not_yet_found_have_no_part():
    """Of a partition with one environment the loss inside is that of the whole batch."""
    _, gradient, params, extra, ((_, both), _) = stepped("ipirm")
    terms = []
    for order in ([0, 1], [1, 0]):
        own = found(1)
        own["partitions"] = own["partitions"][jnp.asarray(order)]
        (loss, output), _ = gradient(params, {**extra, OWN: own}, a_batch())
        terms.append(output.metrics)
        weighed = output.metrics["loss/contrastive"] + 0.2 * output.metrics["loss/penalty"]
        np.testing.assert_allclose(loss, output.metrics["loss/global"] + weighed, rtol=1e-6)
    alone = terms[1]
    np.testing.assert_allclose(alone["loss/contrastive"], alone["loss/global"], rtol=1e-6)
    # Three environments with examples, each of one weight.
    for name in ("loss/contrastive", "loss/penalty"):
        expected = (2 * terms[0][name] + terms[1][name]) / 3
        np.testing.assert_allclose(both.metrics[name], expected, rtol=1e-5)


def test_a_loop_over_partitions_changes_nothing():
    straight, looped = stepped("mixup")[-1], stepped("mixup_in_a_loop")[-1]
    for one, other in zip(jax.tree.leaves(straight), jax.tree.leaves(looped), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("epoch", "start", "schedule", "weight"),
    [
        (3, 5, "constant", 0.0),  # the fourth epoch, counted from 1
        (4, 5, "constant", 0.2),
        (0, 200, "constant", 0.2),  # never switched off: the published quirk
        (4, 0, "linear", 0.05),
    ],
)
def test_the_penalty_s_weight(epoch, start, schedule, weight):
    progress = Progress(jnp.int32(0), jnp.float32(epoch), jnp.float32(0.25))
    np.testing.assert_allclose(_ipirm.penalty_weight(progress, 0.2, start, schedule), weight)


def flat(seen):
    """Losses that no partition changes."""
    return lambda shares: (jnp.zeros(2), jnp.zeros(2))


def nothing_is_finite(seen):
    return lambda shares: (jnp.full(2, jnp.inf), jnp.zeros(2))


def test_a_search_stops_keeps_the_best_and_leaves_out_what_fills_no_batch():
    orders = []

    def look(epoch):
        orders.append(epoch)
        return {"index": jnp.arange(7)}, np.arange(7)

    start = np.zeros((7, 2), np.float32)
    search = Search(constraint="none", batch_size=3)
    found = _partition_search.run(look, flat, start, search)
    # The first is best; from the second on none is lower; epoch 51 is the first after `until`.
    assert (found.epoch, len(found.risks), orders) == (0, 52, list(range(52)))
    np.testing.assert_array_equal(found.best, start)
    split, order = jnp.asarray(start), jnp.arange(7)
    moments = _partition_search.optax.scale_by_adam().init(split)
    for online, batches in ((False, 3), (True, 2)):
        one = search._replace(online=online)
        risks = _partition_search._epoch(split, moments, {"index": order}, order, 0.1, flat, one)[2]
        assert len(risks) == batches
    with pytest.raises(FloatingPointError), jax.debug_nans(False):
        _partition_search.run(look, nothing_is_finite, start, search)


def small_run(variant="ipirm", **changes):
    """40 digits, five steps an epoch, a search before steps 1, 6 and 11 of 12."""
    made = config.get_config(f"{variant},smoke")
    digits = made.train.source.to_dict()
    made.train.source = {"name": "subset", "source": digits, "stop": 0.03}
    made.total_steps, made.save_every_steps, made.eval_every_steps = 12, 4, 0
    made.method.every_epochs = 1
    made.method.search.batch_size = 24
    made.mesh.data = 1
    with made.unlocked():  # one convolution that no evaluation reads: little to compile
        made.backbone = {"name": "one_gconv", "group": "c4"}
        made.evals = {}
    made.update_from_flattened_dict(changes)
    return experiment.build(made)


def end(workdir):
    step, _, params, extra = checkpoint.read_network(workdir / "checkpoints")
    assert step == 12
    return params, extra


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts, on one device."""
    workdir = tmp_path_factory.mktemp("ipirm") / "whole"
    assert loop.run(small_run(), workdir) == loop.FINISHED
    return end(workdir)


def test_retained_partitions_are_those_found_last(whole):
    _, extra = whole
    own = extra[OWN]
    assert own["count"] == 2  # of three searches; the oldest left
    assert own["epochs"] == 3
    assert own["partitions"].shape[1:] == (43, 2)
    assert np.abs(own["partitions"]).min() > 0


@pytest.mark.parametrize("killed_in_search", [False, True])
def test_a_run_that_ends_in_the_midst_goes_on_to_the_same_bits(
    killed_in_search, whole, tmp_path, monkeypatch
):
    """Between two searches, and inside the second one, before its partition is stored anywhere."""

    class Killed(BaseException):
        pass

    run, searches = _partition_search.run, []

    def search(*arguments):
        found = run(*arguments)
        searches.append(found)
        if killed_in_search and len(searches) == 2:
            raise Killed
        return found

    with monkeypatch.context() as patch:
        patch.setattr(_partition_search, "run", search)
        if killed_in_search:
            with pytest.raises(Killed):
                loop.run(small_run(), tmp_path)
        else:
            patch.setattr(loop.Interruption, "reached", lambda self, step: step == 8)
            assert loop.run(small_run(), tmp_path) == loop.INTERRUPTED
    assert loop.run(small_run(), tmp_path) == loop.FINISHED
    np.testing.assert_equal(end(tmp_path), whole)


def test_looks_are_drawn_anew_in_the_order_asked_for():
    job = small_run(variant="ipirm_mixup,cifar100", **{"method.search.epochs": 0})
    a_pass = job.refit_pass
    assert (a_pass.batch_size, a_pass.examples) == (24, 43)
    rows = np.arange(43)[::-1]
    seen = {}
    for number, order in ((0, None), (0, rows), (1, rows)):
        with a_pass.batches(number, order) as batches:
            seen[number, order is None] = list(batches)
    for number in (0, 1):
        index = np.concatenate([batch["index"][batch["mask"]] for batch in seen[number, False]])
        np.testing.assert_array_equal(index, rows)
    first, again = (seen[number, False][0]["views"].astype(int) for number in (0, 1))
    assert np.abs(first - again).mean() > 1
    # Real examples are mixed with real ones, whatever fills the last batch.
    last = seen[0, True][-1]
    assert last["mask"].sum() == 19
    changed = a_pass.augment(jax.random.key(0), jax.tree.map(jnp.asarray, last))
    assert sorted(changed["partner"][:19].tolist()) == list(range(19))
    assert 0.5 <= changed["share"].min() <= changed["share"].max() <= 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method.temperature": 0.0}, "it divides similarities"),
        ({"method.environments": 1}, "at least 0"),
        ({"method.penalty_schedule": "linaer"}, "Did you mean 'linear'"),
        ({"method.search.constraint": "relax"}, "Did you mean 'relaxed'"),
        ({"method.search": {"wait": 1.0}}, "Did you mean 'weight'"),
        ({"method.search": {"mixup": True}}, "the method 'ipirm_mixup'"),
        ({"method.search.batch_size": 1}, "at least 2"),
        ({"method.search": {"mode": 3}}, "it must be a text"),
        ({"method.prior": 0.1}, "of the baseline"),
    ],
)
def test_bad_input_is_refused(fields, message):
    made = config.get_config("ipirm,smoke")
    with made.unlocked():
        for field, value in fields.items():
            at, name = made, field.split(".")
            for part in name[:-1]:
                at = at[part]
            at[name[-1]] = value
    with pytest.raises(ValueError, match=message):
        experiment.build(made)
