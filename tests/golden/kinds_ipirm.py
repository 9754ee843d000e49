"""Kinds of `eqinv` about stage 1, IP-IRM: losses, steps, the partition search, the encoder."""

from __future__ import annotations

import functools
import re
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from case import Case, close

from jaxequi.evals import knn
from jaxequi.interop import mapping
from jaxequi.methods import _ipirm, _partition_search, _siamese, ipirm, ipirm_mixup, linear
from jaxequi.models import torchvision_resnet
from jaxequi.nn.heads import Linear
from jaxequi.nn.norm import BatchNorm
from jaxequi.objectives import classification, contrastive, irm, partition
from jaxequi.objectives.contrastive import l2_normalize
from jaxequi.train import optim
from jaxequi.train.state import TrainState
from jaxequi.train.step import make_train_step
from jaxequi.types import Progress

LOSS = {"rtol": 1e-5, "atol": 1e-6}
GRADIENT = {"rtol": 1e-4, "atol_of_max": 2e-5}
# As one program each: alone, every operation would be compiled.
BY_ENVIRONMENT = jax.jit(irm.by_environment, static_argnums=(3, 4, 5))
LOGITS = jax.jit(contrastive.ntxent_logits, static_argnums=2)


def infonce(case: Case) -> None:
    """Logits, their order, loss and penalty with gradients; an environment of one, and of none."""
    features, n = case["in/features"], case.meta["n"]
    a, b = features[:n], features[n:]
    temperature, penalty_temperature = case.meta["temperature"], case.meta["irm_temp"]
    logits = LOGITS(a, b, temperature)
    close(logits, case["out/logits"], **LOSS, name="logits")
    close(logits, case["out/logits_update"], **LOSS, name="logits_update")
    assert not case["out/labels"].any()
    # Which example a column holds: of cosines that say it.
    example = np.tile(np.arange(n), 2)
    of = [[i, *np.delete(example, [r, (r + n) % (2 * n)])] for r, i in enumerate(example)]
    np.testing.assert_array_equal(of, case["out/index_update"])
    where = jnp.zeros(n, jnp.int32)

    @jax.jit
    def losses(features):
        """Of each environment; and by the features, loss and penalty of the first."""

        def found(features):
            both = features[:n], features[n:]
            return irm.by_environment(*both, where, 2, temperature, penalty_temperature)

        return found(features), jax.jacrev(lambda f: [part[0] for part in found(f)[:2]])(features)

    (loss, penalty, count), slopes = losses(features)
    np.testing.assert_array_equal(count, [n, 0])
    np.testing.assert_array_equal([loss[1], penalty[1]], 0)  # theirs raises for an empty one
    close(loss[0], case["out/cross_entropy"], **LOSS, name="loss")
    close(penalty[0], case["out/penalty"], **LOSS, name="penalty")

    for found, scale in zip(slopes, ("ce", "penalty"), strict=True):
        # A gradient by features of length 1 of which lengths are no part.
        expected = case[f"grad/{scale}_features"]
        along = np.sum(expected * features, axis=1, keepdims=True)
        close(found, expected - along * features, **GRADIENT, name=scale)
    given = jnp.asarray(case["out/logits"] * temperature / penalty_temperature)
    penalty, gradient = jax.jit(jax.value_and_grad(irm.column_penalty))(given)
    close(penalty, case["out/penalty"], **LOSS, name="penalty of logits")
    close(gradient, case["grad/penalty_logits"], **GRADIENT, name="by logits")
    one = LOGITS(a[:1], b[:1], 1.0)
    loss, penalty, _ = BY_ENVIRONMENT(a[:1], b[:1], where[:1], 1, 1.0, 1.0)
    assert one.shape == case["out/one_sample_logits"].shape == (2, 1)
    close(loss[0], case["out/one_sample_ce"], **LOSS, name="one")
    close(penalty[0], case["out/one_sample_penalty"], **LOSS, name="one")


def said(case: Case, variant: str, name: str) -> float:
    """A hyper-parameter of a variant, which its case tells in words: "irm_temp .3"."""
    return float(re.search(rf"\b{name} ([\d.]+)", case.meta["variants"][variant])[1])


VARIANTS = {
    "plain": {},
    "relax_inactive": {"constraint": "relaxed"},
    "relax_active": {"constraint": "relaxed", "split": "split_skewed"},
    "constrain": {"constraint": "entropy", "split": "split_skewed"},
    "nonorm": {"constraint": "entropy", "normalize": False},
    "irm_v2": {"mode": "variance"},
    "three_envs": {"constraint": "relaxed", "split": "split3"},
    "temps": {
        "temperature": "temperature",
        "penalty_temperature": "irm_temp",
        "weight": "irm_weight",
    },
}
TERMS = {"risk": "risk", "cont": "contrastive", "inv": "variation", "constrain": "constraint"}


def partition_objective(case: Case) -> None:
    """The risk of a batch of a soft partition, and its gradient; the soft loss alone."""
    index, meta = case["in/index"], case.meta
    a, b = (jnp.asarray(case[f"in/out_{view}"][index]) for view in (1, 2))
    for name, changes in VARIANTS.items():
        given = {
            "temperature": meta["temperature"],
            "penalty_temperature": meta["irm_temp"],
            "weight": meta["irm_weight"],
            "normalize": True,
            **{key: said(case, name, v) if name == "temps" else v for key, v in changes.items()},
        }
        split = jnp.asarray(case[f"in/{given.pop('split', 'split')}"])
        temperatures = {k: given.pop(k) for k in ("temperature", "penalty_temperature")}

        def risk(split, given=given, temperatures=temperatures):
            losses = partition.infonce(a, b, normalize=given["normalize"], **temperatures)
            found = partition.risk(losses, split[index], **given)
            return found.risk, found

        gradient, found = jax.jit(jax.grad(risk, has_aux=True))(split)
        for term, field in TERMS.items():
            close(getattr(found, field), case[f"out/{name}/{term}"], **LOSS, name=f"{name} {term}")
        close(gradient, case[f"grad/{name}/split"], **GRADIENT, name=name)

    def soft(rows, mode):
        shares = jax.nn.softmax(rows)
        if mode == 1:
            return partition.scaled_infonce(a, b, shares[:, 0], meta["temperature"])
        both = {"temperature": meta["temperature"], "penalty_temperature": meta["irm_temp"]}
        return partition.infonce(a, b, **both)(shares)[0][0]

    rows = jnp.asarray(case["in/split"][index])
    for mode in (1, 2):
        value, gradient = jax.jit(jax.value_and_grad(functools.partial(soft, mode=mode)))(rows)
        close(value, case[f"out/soft_v{mode}"], **LOSS, name=f"soft v{mode}")
        close(gradient, case[f"grad/soft_v{mode}/split_rows"], **GRADIENT, name=f"soft v{mode}")


def mixup_soft(case: Case) -> None:
    """The soft losses of mixtures, of one environment."""
    share, partner = jnp.asarray(case["in/lam"]), jnp.asarray(case["in/labels_aux"])
    for name in ("online", "online_nonorm", "offline", "offline_nonorm"):
        given = partner if name.startswith("online") else None

        def loss(logits, weights, name=name, given=given):
            losses = partition.mixed_infonce(
                logits, share, given, normalize=not name.endswith("nonorm")
            )
            return losses(weights[:, None])[0][0]

        arguments = jnp.asarray(case["in/logits"]), jnp.asarray(case["in/weights"])
        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arguments)
        close(value, case[f"out/{name}"], **LOSS, name=name)
        for of, gradient in zip(("logits", "weights"), gradients, strict=True):
            close(gradient, case[f"grad/{name}/{of}"], **GRADIENT, name=f"{name} {of}")


class Backbone(nn.Module):
    """f of the cases without images: Linear, BatchNorm, ReLU."""

    features: int

    @nn.compact
    def __call__(self, x, train):
        x = Linear(self.features, use_bias=False, name="linear")(x)
        return nn.relu(BatchNorm(use_running_average=not train, name="norm")(x))


def rename(module: str) -> str:
    """Names of f and g in the cases."""
    head = {"projector/linear_0": "g.0", "projector/norm_0": "g.1", "projector/linear_1": "g.3"}
    stem = {"backbone/linear": "f.0", "backbone/norm": "f.1", "backbone/conv1": "f.0"}
    names = {**head, **stem, "backbone/bn1": "f.1"}
    if module in names:
        return names[module]
    # The children of a ResNet without its max-pool: layer1 is the third after conv, bn and relu.
    _, block, *layer = module.split("/")
    stage, number = block.removeprefix("layer").split("_")
    last = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
    return f"f.{int(stage) + 2}.{number}.{last.get(layer[0], layer[0])}"


TABLE = mapping.by_module(rename)
START = Progress(jnp.int32(0), jnp.float32(0), jnp.float32(0))


def loaded(case: Case, make, **options):
    """A method over `Backbone` with the widths of the case, its parameters and its state."""
    state = case.under("param")
    widths = f"{len(state['g.0.weight'])}-{len(state['g.3.weight'])}"
    method = make(backbone=Backbone(len(state["f.0.weight"])), projector=widths, **options)
    width = state["f.0.weight"].shape[1]
    batch = {"views": jax.ShapeDtypeStruct((2, 2, width), jnp.float32)}
    params, extra = jax.eval_shape(method.init, jax.random.key(0), batch)
    shapes = {"params": params, "batch_stats": extra["batch_stats"]}
    variables = jax.tree.map(jnp.asarray, mapping.from_torch(state, shapes, TABLE))
    return method, variables.pop("params"), variables


def held(splits) -> dict:
    """The state of a method that found these partitions."""
    own = _ipirm.own(*splits.shape)
    return {"own": {**own, "partitions": jnp.asarray(splits), "count": jnp.int32(len(splits))}}


def batch_of(case: Case, i=()) -> dict:
    batch = {"views": jnp.asarray(np.stack([case["in/x1"][i], case["in/x2"][i]], axis=1))}
    return batch | ({"index": jnp.asarray(case["in/index"][i])} if "in/index" in case else {})


def gradient(method, params, extra, batch, progress=START, key=None):
    loss = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    (value, output), grads = loss(params, extra, batch, key or jax.random.key(0), progress)
    return value, output, mapping.to_torch({"params": grads}, TABLE)


def close_all(ours, expected, name, **tolerance) -> None:
    for key, theirs in expected.items():
        if not key.endswith("num_batches_tracked"):
            close(ours[key], theirs, **tolerance, name=f"{name} {key}")


def simclr(case: Case) -> None:
    """Both baselines."""
    given = {key: case.meta[key] for key in ("temperature", "tau_plus")}
    variants = {
        "standard": {**given, "tau_plus": 0.0},
        "debiased": given,
        "debiased_clamped": case.meta["clamped"],
    }
    for name, one in variants.items():
        options = {"temperature": one["temperature"], "prior": one["tau_plus"], "partitions": 0}
        method, params, extra = loaded(case, ipirm.make, **options)
        value, _, grads = gradient(method, params, extra, batch_of(case))
        close(value, case[f"out/{name}/loss"], **LOSS, name=name)
        close_all(grads, case.under(f"grad/{name}"), name, **GRADIENT)


def options_of(case: Case, partitions: int) -> dict:
    return {
        "temperature": case.meta["temperature"],
        "irm_temperature": case.meta["irm_temp"],
        "penalty_weight": case.meta["penalty_weight"],
        "environments": case["in/splits"].shape[-1],
        "examples": case["in/splits"].shape[1],
        "partitions": partitions,
    }


def train_env(case: Case) -> None:
    """One step of the minimisation in its forms."""
    splits = case["in/splits"]
    forms = {
        "retain": {},
        "rescaled": {"penalty_weight": said(case, "rescaled", "penalty_weight")},
        "no_cont": {"keep_cont": False},
        "single": {"partitions": 1},
        "penalty_off": {"penalty_from": int(said(case, "penalty_off", "penalty_iters"))},
        "irm_temp": {"irm_temperature": said(case, "irm_temp", "irm_temp")},
    }
    assert set(forms) == set(case.meta["variants"])
    for name, changes in forms.items():
        options = {**options_of(case, len(splits)), **changes}
        method, params, extra = loaded(case, ipirm.make, **options)
        own = held(splits[: options["partitions"]])
        # Theirs counts epochs from 1.
        epoch = said(case, name, "at epoch") - 1 if name == "penalty_off" else 0
        progress = START._replace(epoch=jnp.float32(epoch))
        batch = batch_of(case)
        value, output, grads = gradient(method, params, {**extra, **own}, batch, progress)
        close(value, case[f"out/{name}/loss"], **LOSS, name=name)
        close_all(grads, case.under(f"grad/{name}"), name, **GRADIENT)
        if f"out/{name}/loss_original" in case:
            found = output.metrics["loss/global"]
            close(found, case[f"out/{name}/loss_original"], **LOSS, name=name)
        a, b = np.moveaxis(output.features["embedding"], 1, 0)
        temperatures = options["temperature"], options["irm_temperature"]
        terms = [
            BY_ENVIRONMENT(a, b, environment, splits.shape[-1], *temperatures)[:2]
            for environment in _ipirm.environments_of(own["own"], batch)
        ]
        for part, key in enumerate(("env_contrastive", "env_penalty")):
            found = np.concatenate([term[part] for term in terms])
            close(found, case[f"out/{name}/{key}"], **LOSS, name=f"{name} {key}")


def steps(case: Case) -> None:
    """Steps of the training program."""
    meta, splits = case.meta, case["in/splits"]
    options = {**options_of(case, len(splits)), "keep_cont": meta["keep_cont"]}
    method, params, extra = loaded(case, ipirm.make, **options)
    count, size = case["in/index"].shape
    optimizer = optim.make(
        "adam",
        learning_rate=meta["lr"],
        weight_decay=meta["weight_decay"],
        betas=tuple(meta["betas"]),
        epsilon=meta["eps"],
        total_steps=count,
        batch_size=size,
    )
    step = make_train_step(
        method, optimizer, lambda key, batch: batch, total_steps=count, steps_per_epoch=count
    )
    state = TrainState(
        jnp.int32(0), params, {**extra, **held(splits)}, optimizer.init(params), jax.random.key(0)
    )
    step = jax.jit(step)
    for i in range(count):
        state, metrics = step(state, batch_of(case, i))
        close(metrics["loss"], case["out/loss"][i], rtol=1e-4, name=f"loss {i}")
    stats = {"batch_stats": state.extra["batch_stats"]}
    ours = mapping.to_torch({"params": state.params, **stats}, TABLE)
    close_all(ours, case.under("out/final"), "final", rtol=0, atol=2e-5)


def losses_of_infonce(temperature: float, irm_temperature: float):
    return lambda seen: partition.infonce(
        seen["embedding"][:, 0],
        seen["embedding"][:, 1],
        temperature=temperature,
        penalty_temperature=irm_temperature,
    )


def constraint_of(meta: dict) -> str:
    """Ours for their two options."""
    return ("relaxed" if meta["cons_relax"] else "entropy") if meta["constrain"] else "none"


def split_run(case: Case) -> None:
    """A whole search: risks, where it stops, what it finds, and what it passes through."""
    meta, perms = case.meta, case["in/perms"]
    embedding = np.stack([case["in/out_1"], case["in/out_2"]], axis=1)
    seen = {"index": np.arange(len(embedding), dtype=np.int32), "embedding": embedding}
    losses_of = losses_of_infonce(meta["temperature"], meta["irm_temp"])
    search = _partition_search.Search(
        weight=meta["irm_weight"],
        constraint=constraint_of(meta),
        normalize=not meta["nonorm"],
        batch_size=meta["batch_size"],
        learning_rate=meta["adam_lr"],
        milestones=tuple(meta["milestones"]),
    )
    assert meta["gamma"] == _partition_search.DROP  # fixed there, too

    def look(epoch):
        return seen, perms[epoch].astype(np.int32)

    found = _partition_search.run(look, losses_of, case["in/split"], search)
    assert len(found.risks) == case["out/num_epochs"]
    assert found.epoch == case["out/best_epoch"]
    close(found.risks, case["out/epoch_risk"], rtol=0, atol=1e-4, name="risk")
    close(found.best, case["out/best_split"], rtol=0, atol=1e-3, name="best")
    np.testing.assert_array_equal(found.best.argmax(axis=1), case["out/assign"])
    for key, expected in case.under("out").items():
        if key.startswith("split_after_epoch_"):
            short = search._replace(epochs=int(key.rpartition("_")[2]))
            last = _partition_search.run(look, losses_of, case["in/split"], short).last
            close(last, expected, rtol=0, atol=1e-3, name=key)


def mixup_objective(case: Case) -> None:
    """The first step of the searches on mixtures, from images and from embeddings."""
    meta, index = case.meta, case["in/index"]
    share, partner = jnp.asarray(case["in/lam"]), jnp.asarray(case["in/randind"])
    options = {"mixup": True, "weight": meta["irm_weight"]}
    for kind in ("online", "offline"):
        method, params, extra = loaded(
            case,
            ipirm_mixup.make,
            temperature=meta["temperature"],
            alpha=meta["alpha"],
            examples=len(case["in/split"]),
            search={**options, "online": kind == "online"},
        )
        if kind == "online":
            views = jnp.asarray(np.stack([case["in/x1"], case["in/x2"]], axis=1)[index])
            with mock.patch.object(ipirm_mixup, "draw", return_value=(share, partner)):
                mask = jnp.ones(len(index), bool)
                batch = method.refit.change(jax.random.key(0), {"views": views, "mask": mask})
            embedding = jax.jit(method.encode)(params, extra, batch["views"])["embedding"]
            seen = {"embedding": embedding, "share": batch["share"], "partner": batch["partner"]}
        else:
            embedding = np.stack([case["in/off_out_1"], case["in/off_out_2"]], axis=1)[index]
            seen = {"embedding": embedding, "share": jnp.asarray(case["in/off_lam"][index])}

        def risk(split, seen=seen):
            a, b = (l2_normalize(seen["embedding"][:, view]) for view in (0, 1))
            logits = a @ b.T / meta["temperature"]
            losses = partition.mixed_infonce(logits, seen["share"], seen.get("partner"))
            found = partition.risk(
                losses, split[index], weight=meta["irm_weight"], constraint=constraint_of(meta)
            )
            return found.risk, found

        grads, found = jax.jit(jax.grad(risk, has_aux=True))(jnp.asarray(case["in/split"]))
        for term, field in TERMS.items():
            close(getattr(found, field), case[f"out/{kind}_{term}"], **LOSS, name=f"{kind} {term}")
        close(grads, case[f"grad/{kind}/split"], **GRADIENT, name=kind)


def mixup_train(case: Case) -> None:
    """Steps on mixtures: the baseline, several partitions, a single one."""
    meta, splits, index = case.meta, case["in/splits"], case["in/index"]
    size, environments = len(index), splits.shape[-1]
    assert meta["keep_cont"]
    for name, partitions in (("baseline", 0), ("retain", len(splits)), ("noretain", 1)):
        where = np.zeros((1 + partitions, size), np.int32)
        where[1:] = splits[:partitions, index].argmax(axis=-1)
        shares, partners = np.zeros((2, *where.shape))
        i = 0
        for row, environment in enumerate(where):
            for one in range(environments if row else 1):
                rows = np.flatnonzero(environment == one)
                shares[row, rows] = case[f"in/{name}/lam_{i}"]
                partners[row, rows] = rows[case[f"in/{name}/randind_{i}"]]
                i += 1
        assert f"in/{name}/lam_{i}" not in case
        drawn = jnp.asarray(shares, jnp.float32), jnp.asarray(partners, jnp.int32)

        def draw(key, environment, alpha, where=where, drawn=drawn):
            """What was drawn for these environments; the whole batch comes first."""
            here = jnp.argmax(jnp.all(environment == where, axis=1))
            return tuple(values[here] for values in drawn)

        options = {**options_of_mixup(case), "partitions": partitions}
        method, params, extra = loaded(case, ipirm_mixup.make, **options)
        if partitions:
            extra |= held(splits[:partitions])
        with mock.patch.object(ipirm_mixup, "draw", draw):
            value, output, grads = gradient(method, params, extra, batch_of(case))
        losses = case[f"out/{name}/backward_losses"]
        close(value, losses.sum(), **LOSS, name=name)
        if name != "noretain":
            close(output.metrics["loss/global"], losses[0], **LOSS, name=name)
        close_all(grads, case.under(f"grad/{name}"), name, **GRADIENT)
        stats = {"batch_stats": output.extra["batch_stats"]}
        ours = mapping.to_torch({"params": params, **stats}, TABLE)
        close_all(ours, case.under(f"out/{name}/after"), name, **GRADIENT)


def options_of_mixup(case: Case) -> dict:
    return {
        "temperature": case.meta["temperature"],
        "alpha": case.meta["alpha"],
        "penalty_weight": case.meta["penalty_weight"],
        "environments": case["in/splits"].shape[-1],
        "examples": case["in/splits"].shape[1],
    }


def neighbours(case: Case) -> None:
    """Weighted kNN, with the temperature of the training."""
    sets = {
        "train": {"representation": case["in/memory"][:, None], "label": case["in/memory_labels"]},
        "val": {"representation": case["in/query"][:, None], "label": case["in/query_labels"]},
    }
    found = knn.evaluate(sets, k=case.meta["k"], temperature=case.meta["temperature"])
    for k in (1, 5):
        close(100 * found[f"top{k}"], case[f"out/acc{k}"], rtol=1e-4, name=f"acc{k}")


def linear_evaluation(case: Case) -> None:
    """A head learns on a frozen network whose statistics drift; then both are in evaluation."""
    state, meta = case.under("param"), case.meta
    classes, features = state["fc.weight"].shape
    method = linear.make(
        backbone=Backbone(features),
        num_classes=classes,
        heads={"classification": ("linear",)},
        drift=True,
    )
    name = "classification-all-linear"
    table = mapping.by_module(lambda m: "fc" if m.startswith(name) else rename(f"backbone/{m}"))
    x, y = case["in/x"], case["in/y"]
    batch = {"views": x[0][:, None], "label": y[0]}
    params, extra = jax.eval_shape(method.init, jax.random.key(0), batch)
    frozen = extra["own"]["backbone"]
    shapes = {"params": {**params, **frozen["params"]}, "batch_stats": frozen["batch_stats"]}
    variables = jax.tree.map(jnp.asarray, mapping.from_torch(state, shapes, table))
    params = {key: variables["params"].pop(key) for key in params}
    optimizer = optim.make(
        "adam",
        learning_rate=meta["lr"],
        weight_decay=meta["weight_decay"],
        total_steps=len(x),
        batch_size=len(x[0]),
    )
    step = make_train_step(
        method, optimizer, lambda key, batch: batch, total_steps=len(x), steps_per_epoch=len(x)
    )
    step = jax.jit(step)
    run = TrainState(
        jnp.int32(0),
        params,
        {"own": {"backbone": variables}},
        jax.jit(optimizer.init)(params),
        jax.random.key(0),
    )
    rows = []
    for images, labels in zip(x, y, strict=True):
        run, metrics = step(run, {"views": images[:, None], "label": labels})
        scores = [metrics[f"top{k}/{name}"] * 100 for k in (1, 5)]
        rows.append([metrics["loss"], *scores])
    close(np.mean(rows, axis=0), case["out/train"], rtol=1e-4, name="train")
    images, labels = x.reshape(-1, 1, x.shape[-1]), y.reshape(-1)

    @jax.jit
    def test(params, extra):
        logits = method.encode(params, extra, images)["heads"][name][:, 0]
        scores = [classification.top_k(logits, labels, k) * 100 for k in (1, 5)]
        return [classification.cross_entropy(logits, labels), *scores]

    found = test(run.params, run.extra)
    close(found, case["out/test"], rtol=1e-4, name="test")
    frozen = run.extra["own"]["backbone"]
    ours = {"params": {**run.params, **frozen["params"]}, "batch_stats": frozen["batch_stats"]}
    close_all(mapping.to_torch(ours, table), case.under("out/final"), "final", rtol=1e-4, atol=1e-6)


def model_cifar(case: Case) -> None:
    """The encoder for small images with its projector, in evaluation and in training."""
    state = case.under("param")
    blocks = {tuple(key.split(".")[1:3]) for key in state if key.endswith(".conv1.weight")}
    stages = sorted({int(stage) for stage, _ in blocks})
    sizes = tuple(sum(int(stage) == one for stage, _ in blocks) for one in stages)
    widths = tuple(len(state[f"f.{stage}.0.conv1.weight"]) for stage in stages)
    backbone = torchvision_resnet.ResNet(
        stage_sizes=sizes,
        block=torchvision_resnet.Bottleneck,
        width=len(state["f.0.weight"]),
        stage_widths=widths,
        stem="small",
    )
    text = f"{len(state['g.0.weight'])}-{len(state['g.3.weight'])}"
    head = _siamese.projector(text, bias=False, last_bias=True)
    network = _siamese.Siamese(backbone, head)
    images, large = (jnp.moveaxis(case[f"in/{name}"], 1, -1) for name in ("x", "x_large"))
    shapes = jax.eval_shape(lambda key: network.init(key, images, True), jax.random.key(0))
    variables = mapping.from_torch(state, shapes, TABLE)
    tolerance = {"rtol": 1e-4, "atol": 1e-5}

    @functools.partial(jax.jit, static_argnums=1)
    def encode(images, train):
        moving = ["batch_stats"] if train else []
        encoded, _ = network.apply(variables, images, train, mutable=moving)
        return l2_normalize(encoded.representation), l2_normalize(encoded.embedding)

    for kind, train in (("eval", False), ("train", True)):
        feature, out = encode(images, train)
        close(feature, case[f"out/{kind}_feature"], **tolerance, name=f"{kind} feature")
        close(out, case[f"out/{kind}_out"], **tolerance, name=f"{kind} out")
    close(encode(large, False)[0], case["out/eval_feature_large"], **tolerance, name="large")


KINDS = {
    "ipirm_infonce": infonce,
    "ipirm_knn": neighbours,
    "ipirm_linear": linear_evaluation,
    "ipirm_mixup_objective": mixup_objective,
    "ipirm_mixup_soft": mixup_soft,
    "ipirm_mixup_train": mixup_train,
    "ipirm_model_cifar": model_cifar,
    "ipirm_partition_objective": partition_objective,
    "ipirm_simclr": simclr,
    "ipirm_split_run": split_run,
    "ipirm_split_run_batches": split_run,
    "ipirm_steps": steps,
    "ipirm_train_env": train_env,
}
