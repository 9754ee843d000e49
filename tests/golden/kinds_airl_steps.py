"""Kinds of `airl` that hold losses and training steps of MoCo, BYOL and SimSiam."""

from __future__ import annotations

import dataclasses
import functools
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import names_airl as table
import numpy as np
import optax
from case import Case, close
from kinds_airl_networks import (
    EXACT,
    FORWARD,
    backbone,
    close_gradients,
    close_state,
    f64,
    images,
    in_f64,
)
from kinds_airl_optimizers import rate

from jaxequi import names
from jaxequi.interop import mapping
from jaxequi.nn.heads import Linear
from jaxequi.nn.norm import BatchNorm
from jaxequi.objectives import classification, contrastive
from jaxequi.objectives.contrastive import infonce
from jaxequi.objectives.regression import cosine_similarity
from jaxequi.train import optim
from jaxequi.types import Progress

l2_normalize = jax.jit(contrastive.l2_normalize)

STEP = EXACT  # the steps are run in f64, as the reference's were: in f32 three of them diverge


def pair(case: Case, i: int, first: str = "view1", second: str = "view2"):
    """The views of step i."""
    both = [images(case[f"in/{name}_{i}"]) for name in (first, second)]
    return f64(np.stack(both, axis=1))


def progress_after(count: int, total: int) -> Progress:
    """Where a run stands after `count` of `total` steps; no method looks at the epoch."""
    return Progress(jnp.int32(count), jnp.zeros(()), jnp.asarray(count / total))


def key_that_draws(draw) -> jax.Array:
    """A key of which MoCo takes the view on that side of a half."""
    return next(
        key
        for key in map(jax.random.key, range(1000))
        if (jax.random.uniform(jax.random.split(key)[1]) < 0.5) == (draw < 0.5)
    )


def at_count(opt_state, count: int):
    """An optimizer's empty state in the midst of its schedule."""
    return optax.tree_utils.tree_set(opt_state, count=jnp.int32(count))


def loss_byol(case: Case) -> None:
    o1, o2, t1, t2 = (case[f"in/{name}"] for name in ("online1", "online2", "target1", "target2"))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def both(o1, o2):
        of = [
            2 - 2 * cosine_similarity(o, jax.lax.stop_gradient(t)) for o, t in ((o1, t2), (o2, t1))
        ]
        return sum(of), of

    (loss, (first, second)), grads = both(o1, o2)
    close(first, case["out/l_o1_t2"], **EXACT, name="o1 t2")
    close(second, case["out/l_o2_t1"], **EXACT, name="o2 t1")
    close(loss, case["out/loss"], **EXACT, name="loss")
    for i in (0, 1):
        close(grads[i], case[f"grad/online{i + 1}"], **EXACT, name=f"online{i + 1}")


class _Stub(nn.Module):
    """The identity online, a matrix in the target network."""

    features: int

    @nn.compact
    def __call__(self, x, train):
        return x @ self.param("kernel", nn.initializers.zeros, (self.features, self.features))


class _Nothing(nn.Module):
    """A head that does nothing."""

    widths: tuple[int, ...]

    def __call__(self, x, train):
        return x


def loss_moco(case: Case) -> None:
    """The method with stubs for its networks, over calls in which the queue wraps around."""
    meta = case.meta
    eye, matrix = np.eye(meta["dim"], dtype=np.float32), case["in/target_matrix"]
    for name, symmetric in (("v1", False), ("v2p", True)):
        with mock.patch(
            "jaxequi.methods._siamese.projector", return_value=_Nothing((meta["dim"],))
        ):
            method = names.find("methods", "moco")(
                backbone=_Stub(meta["dim"]),
                symmetric=symmetric,
                shuffle=False,
                queue=meta["queue_size"],
                temperature=meta["temperature"],
            )
        params = {"backbone": {"kernel": jnp.asarray(eye)}}
        target = {"params": {"backbone": {"kernel": jnp.asarray(matrix)}}}
        own = {
            "target": target,
            "queue": jnp.asarray(case[f"param/{name}/queue"]),
            "pointer": jnp.int32(0),
        }

        @jax.jit
        def call(views, own, key, method=method, params=params):
            def loss(views):
                batch = {"views": views}
                return method.loss(params, {"own": own}, batch, key, progress_after(0, 1))

            return jax.value_and_grad(loss, has_aux=True)(views)

        for i in range(meta["steps"]):
            key = (
                key_that_draws(case["in/v2p_uniform_draws"][i]) if symmetric else jax.random.key(0)
            )
            views = np.stack([case[f"in/view1_{i}"], case[f"in/view2_{i}"]], axis=1)
            before = own["queue"]
            (value, output), grads = call(views, own, key)
            own = output.extra["own"]
            q = l2_normalize(output.features["prediction"][:, 0])
            k = l2_normalize(views[:, 1] @ matrix)
            logits = infonce_logits(q, k, before, meta["temperature"])
            close(value, case[f"out/{name}/loss_{i}"], **EXACT, name=f"{name} loss {i}")
            close(logits, case[f"out/{name}/logits_{i}"], **EXACT, name=f"{name} logits {i}")
            last = output.features["representation"][:, -1]
            close(last, case[f"out/{name}/gp_feat_{i}"], **EXACT, name=f"{name} feature {i}")
            close(own["queue"], case[f"out/{name}/queue_{i}"], **EXACT, name=f"{name} queue {i}")
            assert own["pointer"] == case[f"out/{name}/ptr_{i}"][0]
            for view in (0, 1):
                key = f"grad/{name}/view{view + 1}_{i}"
                if key in case:
                    close(grads[:, view], case[key], **EXACT, name=key)


@functools.partial(jax.jit, static_argnums=3)
def _infonce(q, k, queue, temperature):
    near = [jnp.sum(q * k, axis=1, keepdims=True), q @ queue.T]
    logits, labels = jnp.concatenate(near, axis=1) / temperature, jnp.zeros(len(q), jnp.int32)
    loss, nearer = infonce(q, k, queue, temperature)
    found = loss, jnp.mean(nearer < 1)
    scores = classification.cross_entropy, lambda *a: classification.top_k(*a, 1)
    return logits, found, tuple(score(logits, labels) for score in scores)


def infonce_logits(q, k, queue, temperature):
    """What `infonce` is the cross-entropy of, and its agreement with that."""
    logits, (loss, top), expected = _infonce(q, k, queue, temperature)
    close(loss, expected[0], **EXACT, name="infonce")
    close(top, expected[1], rtol=1e-6, name="top 1")
    return logits


def method_of(meta):
    """The method of revisitAIRL's recipe, and the table of its encoders."""
    name = meta["kind"].removesuffix("_lars")
    low = meta["low_dim"]
    two = f"{meta['hidden_dim']}-{low}"
    options = {"queue": meta.get("queue_size"), "temperature": meta.get("temperature")}
    plus = {"projector": two, "predictor": two, "batch_norm": True, "symmetric": True}
    plus |= {"momentum_schedule": "cosine"}
    file, more = {
        "byol": ("byol", {"projector": two, "predictor": two}),
        "mocov1": ("moco", {**options, "projector": f"{low}"}),
        "mocov2": ("moco", {**options, "projector": two}),
        "mocov2plus": ("moco", {**options, **plus}),
        "smocov2plus": ("moco", {**options, **plus, "last_bias": False, "predict_keys": True}),
    }[name]
    make = names.find("methods", file)
    more |= {"dtype": jnp.float64}
    method = make(backbone=backbone(meta, jnp.float64), momentum=meta["init_ema"], **more)
    layers = 1 if name == "mocov1" else 2
    return method, table.moco(layers, name not in ("mocov1", "mocov2"))


def encoders(state, online: str, target: str):
    """A torch state dict, split by the names of its two encoders."""
    return tuple(
        {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        for name in (online, target)
    )


def load(method, batch, state, tables, online="online_encoder", target="target_encoder"):
    """Parameters and state of a method from a torch state dict of both encoders."""
    params, extra = jax.eval_shape(method.init, jax.random.key(0), batch)
    own = extra["own"]
    shapes = {"params": params, "batch_stats": extra["batch_stats"]}
    theirs = encoders(state, online, target)
    tree = f64(mapping.from_torch(theirs[0], shapes, tables))
    loaded = {"target": mapping.from_torch(theirs[1], own["target"], tables)}
    if "queue" in own:
        loaded["queue"] = jnp.asarray(state["queue"])
        loaded["pointer"] = jnp.int32(state["queue_ptr"][0])
    return tree["params"], {"batch_stats": tree["batch_stats"], "own": f64(loaded)}


class Run:
    """The loop of revisitAIRL, from anywhere in its schedule: method, optimizer, classifier."""

    def __init__(self, meta, method, optimizer, params, extra, start: int, total: int):
        self.params, self.extra, self.start, self.total = params, extra, start, total
        self.opt_state = at_count(jax.jit(optimizer.init)(params), start)

        @jax.jit
        def move(params, extra, opt_state, grads, after):
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return params, method.update(params, extra, after), opt_state

        # Two programs, for cases that differ in their optimizer alone have the first in common.
        self.gradient, self.move = jax.jit(jax.value_and_grad(method.loss, has_aux=True)), move

    def step(self, i: int, batch, key):
        """Take step i; returns loss, how often keys were found, features and gradient."""
        now, then = (progress_after(self.start + i + n, self.total) for n in (0, 1))
        (loss, output), grads = self.gradient(self.params, self.extra, batch, key, now)
        self.params, self.extra, self.opt_state = self.move(
            self.params, output.extra, self.opt_state, grads, then
        )
        keys = {k: v for k, v in output.metrics.items() if k.startswith("keys/")}
        return loss, keys, output.features, grads


def optimizer_of(meta, total: int, steps_per_epoch: int):
    """The recipe's optimizer, and its learning rate by step."""
    percent = [m / 100 for m in meta["milestones"]]
    top = meta["base_lr_after_scaling"]
    warmup = steps_per_epoch * meta["warmup_epochs"]
    options = rate(meta, top, meta["scheduler"], percent, total, warmup)
    schedule = optim.make_schedule(height=top, total_steps=total, **_named(options))
    options |= {"weight_decay": meta["weight_decay"], "momentum": meta["momentum"]}
    name = "sgd"
    if "lars_eta" in meta:
        assert not meta["weight_decay_exclude"]
        name = "lars"
        options |= {"trust": meta["lars_eta"], "no_decay": "bias|scale"}
    common = {"learning_rate": top, "total_steps": total, "batch_size": meta["batch"]}
    return optim.make(name, **common, **options), schedule


def _named(options):
    """Options of `optim.make` as those of `optim.make_schedule`."""
    return {"name" if k == "schedule" else k: v for k, v in options.items()}


class OnlineClassifier:
    """The linear layer that learns beside a method, on the last view of the online network."""

    def __init__(self, meta, params, start: int, total: int):
        parts = [m / meta["total_epochs"] for m in meta["milestones"]]
        options = rate(meta, meta["lr_cls"], meta["scheduler_cls"], parts, total, 0)
        schedule = optim.make_schedule(height=meta["lr_cls"], total_steps=total, **_named(options))
        optimizer = optim.make(
            "sgd",
            learning_rate=meta["lr_cls"],
            momentum=meta["cls_momentum"],
            weight_decay=meta["cls_weight_decay"],
            total_steps=total,
            batch_size=meta["batch"],
            **options,
        )
        self.params = f64({"kernel": params["weight"].T, "bias": params["bias"]})
        self.opt_state, self.rate = at_count(optimizer.init(self.params), start), schedule
        module = Linear(len(params["bias"]), dtype=jnp.float64)

        @jax.jit
        def step(params, opt_state, features, labels):
            def loss(params):
                logits = module.apply({"params": params}, features)
                return classification.cross_entropy(logits, labels), logits

            (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            top = [100 * classification.top_k(logits, labels, k) for k in (1, 5)]
            return value, top, optax.apply_updates(params, updates), opt_state

        self.compiled = step

    def step(self, features, labels):
        """Take a step; returns the loss and both accuracies in percent."""
        loss, top, self.params, self.opt_state = self.compiled(
            self.params, self.opt_state, features, labels
        )
        return loss, top


@in_f64
def step(case: Case) -> None:
    """Three steps of a recipe of revisitAIRL."""
    meta = case.meta
    total, length = meta["total_iters"], meta["iters_per_epoch"]
    start = meta["start_epoch"] * length
    optimizer, schedule = optimizer_of(meta, total, length)
    if meta["kind"] == "supervised":
        return supervised(case, optimizer, schedule, start)
    method, tables = method_of(meta)
    state = case.under("param/model")
    params, extra = load(method, {"views": pair(case, 0)}, state, tables)
    run = Run(meta, method, optimizer, params, extra, start, total)
    classifier = OnlineClassifier(meta, case.under("param/classifier"), start, total)
    for i in range(len(case["out/loss"])):
        draws = case.arrays.get("in/uniform_draws")
        key = jax.random.key(i) if draws is None else key_that_draws(draws[i])
        close(schedule(start + i), case["out/lr_used"][i], rtol=1e-5, name="lr")
        close(classifier.rate(start + i), case["out/lr_cls_used"][i], rtol=1e-5, name="lr cls")
        loss, keys, features, grads = run.step(i, {"views": pair(case, i)}, key)
        close(loss, case["out/loss"][i], **STEP, name=f"loss {i}")
        last = features["representation"][:, -1]
        cls_loss, top = classifier.step(last, case[f"in/label_{i}"].astype(np.int32))
        close(cls_loss, case["out/cls_loss"][i], **STEP, name=f"classifier's loss {i}")
        for k, found in zip((1, 5), top):
            close(found, case[f"out/cls_top{k}"][i], rtol=1e-5, name=f"classifier's top {k}")
            if f"out/inst_top{k}" in case:
                share = 100 * keys[f"keys/top{k}"]
                close(share, case[f"out/inst_top{k}"][i], rtol=1e-5, name=f"keys' top {k}")
        m = momentum_of(method, start + i + 1, total)
        close(m, case["out/ema_momentum"][i], rtol=1e-5, name="EMA")
        if i == 0:
            close_gradients(grads, case.under("grad/step0"), tables, STEP)
        stored = case.under(f"out/state_{i + 1}")
        if stored:
            _close_both(run, stored, tables, "model/")
            for name in ("weight", "bias"):
                found = (
                    classifier.params["kernel"].T if name == "weight" else classifier.params[name]
                )
                close(found, stored[f"classifier/{name}"], **STEP, name=f"classifier {name}")
    return None


def momentum_of(method, count: int, total: int) -> float:
    """The share of a target network that an update leaves after `count` of `total` steps."""
    own = {"target": {"params": {"backbone": jnp.zeros(())}}}
    moved = method.update({"backbone": jnp.ones(())}, {"own": own}, progress_after(count, total))
    return 1 - moved["own"]["target"]["params"]["backbone"]


def _close_both(run, stored, tables, prefix="", online="online_encoder", target=None):
    target = target or "target_encoder"
    state = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    theirs = encoders(state, online, target)
    ours = {"params": run.params, "batch_stats": run.extra["batch_stats"]}
    close_state(ours, theirs[0], tables, STEP)
    close_state(run.extra["own"]["target"], theirs[1], tables, STEP)
    if prefix and "queue" in state:
        close(run.extra["own"]["queue"], state["queue"], **STEP, name="queue")
        assert run.extra["own"]["pointer"] == state["queue_ptr"][0]


def supervised(case: Case, optimizer, schedule, start: int) -> None:
    """The same, of a classifier that learns alone."""
    meta, tables = case.meta, table.SUPERVISED
    net = backbone(meta, jnp.float64)
    method = names.find("methods", "supervised")(
        backbone=net, num_classes=meta["low_dim"], dtype=jnp.float64
    )

    def batch(i):
        views = f64(images(case[f"in/view1_{i}"]))[:, None]
        return {"views": views, "label": case[f"in/label_{i}"].astype(np.int32)}

    params, extra = jax.eval_shape(method.init, jax.random.key(0), batch(0))
    state = case.under("param/model")
    tree = f64(mapping.from_torch(state, {"params": params, **extra}, tables))
    params, extra = tree.pop("params"), tree
    run = Run(meta, method, optimizer, params, extra, start, meta["total_iters"])
    score = jax.jit(classification.top_k, static_argnums=2)
    for i in range(len(case["out/loss"])):
        close(schedule(start + i), case["out/lr_used"][i], rtol=1e-5, name="lr")
        loss, _, features, grads = run.step(i, batch(i), jax.random.key(0))
        close(loss, case["out/loss"][i], **STEP, name=f"loss {i}")
        for k in (1, 5):
            labels, logits = batch(i)["label"], features["logits"][:, 0]
            top = 100 * score(logits, labels, k)
            close(top, case[f"out/top{k}"][i], rtol=1e-5, name=f"top {k}")
        if i == 0:
            close_gradients(grads, case.under("grad/step0"), tables, STEP)
        stored = case.under(f"out/state_{i + 1}/model")
        close_state({"params": run.params, **run.extra}, stored, tables, STEP)


@in_f64
def moco_step(case: Case) -> None:
    """Three steps of the reference MoCo, which moves the key encoder before it encodes keys."""
    meta = case.meta
    width = backbone(meta).features
    method = names.find("methods", "moco")(
        backbone=backbone(meta, jnp.float64),
        dtype=jnp.float64,
        projector=f"{width}-{meta['dim']}" if meta["mlp"] else f"{meta['dim']}",
        queue=meta["K"],
        temperature=meta["T"],
        momentum=meta["m"],
    )
    tables = table.moco(2 if meta["mlp"] else 1, batch_norm=False, bare=not meta["mlp"])
    state = case.under("param") | {"queue": case["param/queue"].T}
    views = pair(case, 0, "im_q", "im_k")
    params, extra = load(method, {"views": views}, state, tables, "encoder_q", "encoder_k")
    optimizer = optim.make(
        "sgd",
        learning_rate=meta["lr"],
        momentum=meta["momentum"],
        weight_decay=meta["wd"],
        total_steps=10,
        batch_size=meta["B"],
    )
    still = dataclasses.replace(method, update=lambda params, extra, progress: extra)
    run = Run(meta, still, optimizer, params, extra, 0, 10)
    update = jax.jit(method.update)
    steps = sum(key.startswith("loss_") for key in case.under("out"))
    for i in range(steps):
        run.extra = update(run.params, run.extra, progress_after(i, 10))
        before = run.extra["own"]["queue"]
        batch = {"views": pair(case, i, "im_q", "im_k")}
        loss, _, features, grads = run.step(i, batch, jax.random.key(i))
        close(loss, case[f"out/loss_{i}"], **STEP, name=f"loss {i}")
        own = run.extra["own"]
        close(own["queue"].T, case[f"out/queue_{i}"], **STEP, name=f"queue {i}")
        assert own["pointer"] == case[f"out/ptr_{i}"][0]
        if i == 0:
            at = int(case["param/queue_ptr"][0]) + np.arange(meta["B"])
            keys = own["queue"][at % meta["K"]]
            q = l2_normalize(features["prediction"][:, 0])
            logits = infonce_logits(q, keys, before, meta["T"])
            close(logits, case["out/logits_0"], **STEP, name="logits")
            expected = encoders(case.under("grad/step0"), "encoder_q", "encoder_k")[0]
            close_gradients(grads, expected, tables, STEP)
        stored = case.under(f"out/state_{i + 1}")
        if stored:
            _close_both(run, stored, tables, "", "encoder_q", "encoder_k")


@in_f64
def shuffle_bn(case: Case) -> None:
    """One program with a statistics group for each worker, and the drawn order of the keys."""
    meta = case.meta
    workers, order = meta["workers"], jnp.asarray(case["in/idx_shuffle"])
    net = backbone(meta, jnp.float64).clone(norm=functools.partial(BatchNorm, groups=workers))
    projector = f"{meta['hid']}-{meta['low']}" if meta["MLP"] == "moco" else f"{meta['low']}"
    method = names.find("methods", "moco")(
        backbone=net,
        dtype=jnp.float64,
        projector=projector,
        queue=meta["K"],
        temperature=meta["T"],
    )
    tables = table.moco(2 if meta["MLP"] == "moco" else 1, batch_norm=False)
    views = np.concatenate(
        [
            np.stack([images(case[f"in/view{v}_rank{r}"]) for v in (1, 2)], axis=1)
            for r in range(workers)
        ]
    ).astype(np.float64)
    params, extra = load(method, {"views": views}, case.under("param"), tables)
    key = jax.random.key(0)

    def loss(params):
        return method.loss(params, extra, {"views": views}, key, progress_after(0, 1))

    with mock.patch("jax.random.permutation", return_value=order):
        (total, output), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    own, size = output.extra["own"], len(views) // workers
    close(own["queue"], case["out/queue"], **FORWARD, name="queue")
    assert own["pointer"] == case["out/queue_ptr"][0]
    rows = (int(case["param/queue_ptr"][0]) + np.arange(len(views))) % meta["K"]
    keys, q = own["queue"][rows], l2_normalize(output.features["prediction"][:, 0])
    logits = infonce_logits(q, keys, jnp.asarray(case["param/queue"]), meta["T"])
    losses = -np.asarray(jax.jit(jax.nn.log_softmax)(logits))[:, 0]
    features, keys = np.asarray(output.features["representation"])[:, 0], np.asarray(keys)
    close(
        total, np.mean([case[f"out/loss_rank{r}"] for r in range(workers)]), **FORWARD, name="loss"
    )
    for rank in range(workers):
        part = slice(rank * size, (rank + 1) * size)
        assert np.array_equal(order.reshape(workers, -1)[rank], case[f"out/rows_seen_rank{rank}"])
        close(losses[part].mean(), case[f"out/loss_rank{rank}"], **FORWARD, name="loss")
        close(logits[part], case[f"out/logits_rank{rank}"], **FORWARD, name="logits")
        seen = l2_normalize(jnp.asarray(case[f"out/key_raw_before_unshuffle_rank{rank}"]))
        close(keys[order[part]], seen, **FORWARD, name="keys")
        close(features[part], case[f"out/gp_feat_rank{rank}"], **FORWARD, name="feature")
    after = encoders(case.under("out/after_rank0"), "online_encoder", "target_encoder")
    close_state({"batch_stats": output.extra["batch_stats"]}, after[0], tables, FORWARD)
    close_state({"batch_stats": own["target"]["batch_stats"]}, after[1], tables, FORWARD)
    # Each worker has the gradient of its own mean; one program has the mean of theirs.
    names_of = {key.rpartition("_rank")[0] for key in case.under("grad")}
    mean = {
        name: np.mean([case[f"grad/{name}_rank{r}"] for r in range(workers)], axis=0)
        for name in names_of
    }
    close_gradients(grads, mean, tables, FORWARD)


@in_f64
def simsiam_step(case: Case) -> None:
    """Three steps, one an epoch; the predictor's rate is held, as a group of its own."""
    meta = case.meta
    width = backbone(meta).features
    method = names.find("methods", "simsiam")(
        backbone=backbone(meta, jnp.float64),
        dtype=jnp.float64,
        projector=f"{width}-{width}-{meta['dim']}",
        predictor=f"{meta['pred']}-{meta['dim']}",
    )
    batch = {"views": pair(case, 0)}
    params, extra = jax.eval_shape(method.init, jax.random.key(0), batch)
    tree = mapping.from_torch(case.under("param"), {"params": params, **extra}, table.SIMSIAM)
    tree = f64(tree)
    params, extra = tree.pop("params"), tree
    epochs, begin = meta["epochs"], meta["epoch0"]
    height = float(case["out/lr_0"][1]) if meta["fix"] else meta["lr"]
    common = {"momentum": meta["momentum"], "weight_decay": meta["wd"]}
    common |= {"total_steps": epochs, "batch_size": meta["B"], "learning_rate": height}
    cosine = {"schedule": "cosine", "pieces": epochs}
    groups = {
        "predictor": optim.make("sgd", **common, **({} if meta["fix"] else cosine)),
        "encoder": optim.make("sgd", **common, **cosine),
    }
    labels = {k: "predictor" if k == "predictor" else "encoder" for k in params}
    optimizer = optax.partition(groups, labels)
    schedule = optim.make_schedule("cosine", height, epochs, pieces=epochs)
    run = Run(meta, method, optimizer, params, extra, begin, epochs)
    steps = sum(key.startswith("loss_") for key in case.under("out"))
    for i in range(steps):
        close(schedule(begin + i), case[f"out/lr_{i}"][0], rtol=1e-5, name="lr")
        loss, _, features, grads = run.step(i, {"views": pair(case, i)}, jax.random.key(0))
        close(loss, case[f"out/loss_{i}"], **STEP, name=f"loss {i}")
        if i == 0:
            for view in (0, 1):
                for name, feature in (("z", "embedding"), ("p", "prediction")):
                    expected = case[f"out/{name}{view + 1}"]
                    found = features[feature][:, view]
                    close(found, expected, **STEP, name=f"{name}{view + 1}")
            close_gradients(grads, case.under("grad/step0"), table.SIMSIAM, STEP)
        stored = case.under(f"out/state_{i + 1}")
        close_state({"params": run.params, **run.extra}, stored, table.SIMSIAM, STEP)


STEPS = {
    "loss_byol": loss_byol,
    "loss_moco": loss_moco,
    "step": step,
    "moco_step": moco_step,
    "shuffle_bn": shuffle_bn,
    "simsiam_step": simsiam_step,
}
