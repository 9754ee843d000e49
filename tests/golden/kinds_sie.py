"""Reproductions of `golden/sie`: objectives, heads, optimiser steps and data of SIE."""

from __future__ import annotations

import functools
import pathlib
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from case import Case, close
from kinds_sie_evaluations import EVALUATIONS, predictor_of
from kinds_sie_networks import NETWORKS

from jaxequi import augment, names
from jaxequi.data import decoding
from jaxequi.data.sources import threedie
from jaxequi.evals import online
from jaxequi.groups import quaternions, relation
from jaxequi.interop import mapping
from jaxequi.interop.formats import sie as table
from jaxequi.methods import with_online_heads
from jaxequi.nn import heads
from jaxequi.objectives import classification, collapse, contrastive, regression
from jaxequi.train import optim
from jaxequi.train.state import TrainState
from jaxequi.train.step import make_train_step
from jaxequi.types import Method, Output, Relation

TENSOR = {"rtol": 1e-4, "atol_of_max": 1e-5}
SCALAR = {"rtol": 2e-5}
COLUMNS = ("x", "y", "z", "w", "floor_hue", "light_hue")
PROGRESS = None  # no method of the family looks at it

STATS = {
    "loss": "loss",
    "repr_loss_inv": "loss/invariance",
    "repr_loss_equi": "loss/equivariance",
    "std_loss": "loss/variance",
    "pred_std_loss": "loss/prediction_variance",
    "cov_loss": "loss/covariance",
    "coremb_pred": "correlation/prediction",
    "stdemb_pred": "spread/prediction",
}
for view in (1, 2):
    STATS |= {
        f"corhead_view{view}": f"correlation/embedding-view{view}",
        f"coremb_view{view}": f"correlation/representation-view{view}",
        f"stdhead_view{view}": f"spread/embedding-view{view}",
        f"stdemb_view{view}": f"spread/representation-view{view}",
    }
SCORES = {"CE": "cross_entropy", "Top-1": "top1", "Top-5": "top5", "MSE": "mse", "R2": "r2"}


class Identity(nn.Module):
    """The backbone of cases whose inputs are representations."""

    features: int

    def __call__(self, x, train):
        return x


class LinearBackbone(nn.Module):
    """The stand-in backbone of cases that train one."""

    features: int

    @nn.compact
    def __call__(self, x, train):
        kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], self.features))
        return x @ kernel + self.param("bias", nn.initializers.zeros, (self.features,))


def given(columns: int) -> Relation:
    """The relation that stands in the case."""
    return Relation(COLUMNS[:columns], lambda batch: batch["z"][:, :columns])


def build(case: Case, backbone: nn.Module, columns: int) -> Method:
    """The method of ours that is a class of theirs, with its arguments; and its heads."""
    args = case.meta["args"]
    upstream = args.get("cls") or case.meta["upstream"].split("models.py:")[1].split()[0]
    vicreg = {
        "similarity_weight": args["sim_coeff"],
        "variance_weight": args["std_coeff"],
        "covariance_weight": args["cov_coeff"],
        "batch_size": args["batch_size"],
    }
    ntxent = {"name": "ntxent", "temperature": args["simclr_temp"]}
    predictor = predictor_of(args)
    equivariant = {"predictor": predictor, "relation": given(columns)}
    factor = {"equivariance_factor": args["equi_factor"]}
    alone = {"name": "vicreg", "vary_prediction": True, **vicreg}
    name, arguments = {
        "SIE": ("sie", {"equi": args["equi"], **vicreg, **factor, **equivariant}),
        "SIEOnlyEqui": ("only_equi", {"objective": alone, **equivariant}),
        "VICReg": ("vicreg", vicreg),
        "VICRegPartInv": ("vicreg", {"free": args["equi"], **vicreg}),
        "VICRegEquiMod": (
            "equimod",
            {"objective": {"name": "vicreg", **vicreg}, **factor, **equivariant},
        ),
        "SimCLR": ("simclr", {"temperature": args["simclr_temp"]}),
        "SimCLROnlyEqui": ("only_equi", {"objective": ntxent, **equivariant}),
        "SimCLREquiMod": ("equimod", {"objective": ntxent, **factor, **equivariant}),
        "SimCLRAugSelf": (
            "augself",
            {"objective": ntxent, "weight": args["ec_weight"], "relation": given(columns)},
        ),
    }[upstream.removesuffix("RotColor").removesuffix("NoVar")]
    if upstream == "SIENoVar":
        arguments["vary_prediction"] = False
    if upstream == "SimCLREquiModRotColor":
        arguments["equivariance_factor"] = 1.0  # this class leaves the factor out
    method = names.find("methods", name)(backbone=backbone, projector=args["mlp"], **arguments)
    classes = len(case["param/evaluator.classifier_repr.bias"])
    return with_heads(method, classes)


def with_heads(method: Method, classes: int) -> Method:
    """The heads that learn beside each of their methods."""
    return with_online_heads(
        method,
        num_classes=classes,
        features=("representation", "embedding"),
        relation=given(4),
        whole_parts=True,
    )


def pairs(case: Case, x: str, y: str, labels: str = "in/labels") -> dict:
    """A batch of the loop; both views side by side before the last axis."""
    return {
        "views": np.stack([case[x], case[y]], axis=-2),
        "label": case[labels].astype(np.int32),
        "z": case["in/z"],
    }


def load(case: Case, method: Method, batch: dict):
    """The case's parameters and state, in ours."""
    params, extra = jax.eval_shape(method.init, jax.random.key(0), batch)
    tree = mapping.from_torch(case.under("param"), {"params": params, **extra}, table.TABLE)
    return tree.pop("params"), tree


def close_gradients(params, case: Case, prefix: str = "grad/param") -> None:
    """Compare gradients; the scale of rounding is the largest entry of the same module.

    The bias of a Linear before a BatchNorm has no gradient, and the stored one is rounding.
    """
    ours, theirs = mapping.to_torch({"params": params}, table.TABLE), case.under(prefix)
    for name, expected in theirs.items():
        module = name.split(".")[0]
        largest = max(np.abs(g).max() for n, g in theirs.items() if n.split(".")[0] == module)
        close(ours[name], expected, rtol=1e-4, atol=1e-5 * largest, name=f"gradient of {name}")


def close_buffers(extra, case: Case) -> None:
    buffers = mapping.to_torch(extra, table.TABLE)
    for name, expected in case.under("out/buffer_after").items():
        if not name.endswith("num_batches_tracked"):
            close(buffers[name], expected, **TENSOR, name=name)


def close_stats(metrics, stats: dict) -> None:
    for name, expected in stats.items():
        if name == "repr_loss_inv" and expected.shape == (1,):
            assert expected == 0  # a term that the class does not have
            continue
        signed = {"atol": 1e-5} if name.startswith("cor") else {}
        close(metrics[STATS[name]], expected, **SCALAR, **signed, name=name)


def close_scores(metrics, stats: dict) -> None:
    for name, expected in stats.items():
        score, feature = name.split(" ")
        feature = feature.replace("representations", "representation")
        feature = feature.replace("embeddings", "embedding")
        # R2 is 1 minus a quotient near 1: it cannot be known better than that quotient's spacing
        # of 1.2e-7 in f32, which is more than 2e-5 of an R2 near 0.
        spacing = {"atol": 2.4e-7} if score == "R2" else {}
        close(
            metrics[f"online/{SCORES[score]}/{feature}"], expected, **SCALAR, **spacing, name=name
        )


def objective(case: Case) -> None:
    batch = pairs(case, "in/x_repr", "in/y_repr")
    width = case["in/x_repr"].shape[-1]
    method = build(case, Identity(width), batch["z"].shape[-1])
    params, extra = load(case, method, batch)

    @jax.jit
    def gradients(params, views):
        def loss(params, views):
            key = jax.random.key(0)
            return method.loss(params, extra, {**batch, "views": views}, key, PROGRESS)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, views)

    (total, output), (of_params, of_views) = gradients(params, batch["views"])
    close(output.metrics["loss"], case["out/loss"], **SCALAR, name="loss")
    close(output.metrics["online/loss"], case["out/loss_eval"], **SCALAR, name="loss_eval")
    close(total, case["out/loss"] + case["out/loss_eval"], **SCALAR, name="sum of both")
    close_stats(output.metrics, case.under("out/stats"))
    close_scores(output.metrics, case.under("out/stats_eval"))
    close_buffers(output.extra, case)
    close(of_views[:, 0], case["grad/x_repr"], **TENSOR, name="gradient of x")
    close(of_views[:, 1], case["grad/y_repr"], **TENSOR, name="gradient of y")
    close_gradients(of_params, case)


def distributed(case: Case) -> None:
    """The gradient that two processes agreed on, from one program on two devices."""
    batch = pairs(case, "in/x", "in/y")
    method = build(case, LinearBackbone(case.meta["repr_size"]), batch["z"].shape[-1])
    params, extra = load(case, method, batch)
    devices = jax.devices()[: case.meta["world"]]
    mesh = jax.make_mesh(
        (len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )
    split = jax.NamedSharding(mesh, jax.P("data"))

    @jax.jit
    def gradients(params, batch):
        return jax.value_and_grad(method.loss, has_aux=True)(
            params, extra, batch, jax.random.key(0), PROGRESS
        )

    (_, output), of_params = gradients(params, jax.device_put(batch, split))
    close(output.metrics["loss"], case["out/single/loss"], **SCALAR, name="loss")
    close(output.metrics["online/loss"], case["out/single/loss_eval"], **SCALAR, name="loss_eval")
    close_stats(output.metrics, case.under("out/single/stats"))
    of_ranks = [case[f"out/rank{rank}/loss"] for rank in range(case.meta["world"])]
    close(output.metrics["loss"], np.mean(of_ranks), **SCALAR, name="mean loss of the ranks")
    close_gradients(of_params, case)


def train_steps(case: Case) -> None:
    args = case.meta["optim"]
    batch = pairs(case, "in/x", "in/y")
    method = build(case, LinearBackbone(case.meta["repr_size"]), batch["z"].shape[-1])
    params, extra = load(case, method, {name: value[0] for name, value in batch.items()})
    optimizer = optim.make(
        "adam",
        learning_rate=args["lr"],
        weight_decay=args["weight_decay"],
        betas=tuple(args["betas"]),
        epsilon=args["eps"],
        batch_size=batch["z"].shape[1],
        total_steps=case.meta["steps"],
    )
    step = make_train_step(
        method,
        optimizer,
        lambda key, batch: batch,
        total_steps=case.meta["steps"],
        steps_per_epoch=1,
    )
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        extra=extra,
        opt_state=jax.jit(optimizer.init)(params),
        key=jax.random.key(0),
    )
    step = jax.jit(step)
    for t in range(case.meta["steps"]):
        state, metrics = step(state, {name: value[t] for name, value in batch.items()})
        close(metrics["loss"], case["out/loss"][t], rtol=1e-5, name=f"loss of step {t}")
        close(metrics["online/loss"], case["out/loss_eval"][t], rtol=1e-5, name=f"heads {t}")
    after = mapping.to_torch({"params": state.params, **state.extra}, table.TABLE)
    stored = case.under("out/param_after")
    for name, expected in stored.items():
        if not name.endswith("num_batches_tracked"):
            atol = 2e-5 if args["weight_decay"] > 1e-4 else max(2e-5, drift(name, stored, case))
            close(after[name], expected, rtol=0, atol=atol, name=name)


def drift(name: str, state: dict, case: Case) -> float:
    """How far rounding may carry a bias that a norm takes away again, and that norm's mean.

    Its gradient is rounding, and where no weight decay outweighs it Adam makes a whole step of it.
    """
    module, _, kind = name.rpartition(".")
    top, _, place = module.rpartition(".")
    behind = f"{top}.{int(place) + 1}" if place.isdigit() else ""
    free = (kind == "bias" and f"{behind}.running_mean" in state) or kind == "running_mean"
    return 2 * case.meta["optim"]["lr"] * case.meta["steps"] if free else 0.0


def to_ours(state: dict, template, top: str):
    """Carry over the state of one module, which stands at `top` in a whole model."""
    state = {f"{top}.{name}": value for name, value in state.items()}
    ours = {"evaluator": "online"}.get(top, top)
    template = {kind: {ours: tree} for kind, tree in template.items()}
    tree = mapping.from_torch(state, template, table.TABLE)
    return {kind: tree[kind][ours] for kind in tree}


def to_theirs(variables, top: str) -> dict:
    """The inverse of `to_ours`."""
    ours = {"evaluator": "online"}.get(top, top)
    tree = {kind: {ours: part} for kind, part in variables.items()}
    state = mapping.to_torch(tree, table.TABLE)
    return {name.removeprefix(f"{top}."): value for name, value in state.items()}


def predictors(case: Case, make) -> None:
    for c, config in case.meta["configs"].items():
        predictor = make(config)
        x, z, w = (jnp.asarray(case[f"in/{c}/{name}"]) for name in "xzw")
        template = jax.eval_shape(predictor.init, jax.random.key(0), x, z)
        variables = to_ours(case.under(f"param/{c}"), template, "predictor")

        def loss(variables, x, z, predictor=predictor, w=w):
            y = predictor.apply(variables, x, z)
            return jnp.sum(y * w), y

        gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        (_, y), grads = gradients(variables, x, z)
        close(y, case[f"out/{c}/y"], **TENSOR, name=f"{c} y")
        close(grads[1], case[f"grad/{c}/x"], **TENSOR, name=f"{c} gradient of x")
        close(grads[2], case[f"grad/{c}/z"], **TENSOR, name=f"{c} gradient of z")
        ours = to_theirs(grads[0], "predictor")
        for name, expected in case.under(f"grad/{c}/param").items():
            close(ours[name], expected, **TENSOR, name=f"{c} gradient of {name}")


def hypernetwork(case: Case) -> None:
    predictors(
        case,
        lambda config: heads.Hypernetwork(
            hidden=heads.widths(config["predictor"]),
            deep=config["hypernetwork"] == "deep",
            bias=config["bias_hypernet"],
            predicted_bias=config["bias_pred"],
            relu=config["predictor_relu"],
        ),
    )


def mlp_predictor(case: Case) -> None:
    predictors(case, lambda config: heads.MLPPredictor(config["n_layers"]))


def projector(case: Case) -> None:
    for c, config in case.meta["configs"].items():
        layers = heads.Projector(heads.widths(config["mlp"]))
        last = nn.relu if config["last_relu"] else lambda y: y  # an option that nobody sets
        x, w = (jnp.asarray(case[f"in/{c}/{name}"]) for name in "xw")
        template = jax.eval_shape(functools.partial(layers.init, train=True), jax.random.key(0), x)
        variables = to_ours(case.under(f"param/{c}"), template, "projector")
        stats = {kind: tree for kind, tree in variables.items() if kind != "params"}

        def loss(params, x, layers=layers, stats=stats, last=last, w=w):
            given = {"params": params, **stats}
            y, after = layers.apply(given, x, train=True, mutable=list(stats))
            y = last(y)
            return jnp.sum(y * w), (y, after)

        gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (_, (y, after)), (of_params, of_x) = gradients(variables["params"], x)
        close(y, case[f"out/{c}/train_y"], **TENSOR, name=f"{c} train_y")
        close(of_x, case[f"grad/{c}/x"], **TENSOR, name=f"{c} gradient of x")
        ours, theirs = to_theirs({"params": of_params}, "projector"), case.under(f"grad/{c}/param")
        largest = max(np.abs(gradient).max() for gradient in theirs.values())
        for name, expected in theirs.items():
            close(ours[name], expected, rtol=1e-4, atol=1e-5 * largest, name=f"{c} {name}")
        buffers = to_theirs(after, "projector")
        for name, expected in case.under(f"out/{c}/buffer_after").items():
            if not name.endswith("num_batches_tracked"):
                close(buffers[name], expected, **TENSOR, name=f"{c} {name}")
        evaluate = jax.jit(functools.partial(layers.apply, train=False))
        y = last(evaluate({"params": variables["params"], **after}, x))
        close(y, case[f"out/{c}/eval_y"], **TENSOR, name=f"{c} eval_y")


def evaluator(case: Case) -> None:
    """Heads on a method that only hands features on."""
    meta = case.meta
    features = {
        name: np.stack([case[f"in/{short}_view{view}"] for view in (1, 2)], axis=1)
        for name, short in (("representation", "repr"), ("embedding", "emb"))
    }
    method = Method(
        init=lambda key, batch: ({}, {}),
        loss=lambda params, extra, *_: (jnp.zeros(()), Output(extra, {}, features)),
        encode=lambda params, extra, views: features,
        parts={
            "representation": (meta["inv_repr"], meta["equi_repr"]),
            "embedding": (meta["inv_emb"], meta["equi_emb"]),
        },
    )
    angles = case["in/angles"]
    method = with_heads(method, meta["num_classes"])
    batch = {"views": angles[:, None], "label": case["in/labels"].astype(np.int32), "z": angles}
    template = jax.eval_shape(method.init, jax.random.key(0), batch)[0]
    params = to_ours(case.under("param"), {"params": template["online"]}, "evaluator")["params"]

    def loss(params):
        return method.loss({"online": params}, {}, batch, jax.random.key(0), PROGRESS)

    (total, output), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    close(total, case["out/loss"], **SCALAR, name="loss")
    close_scores(output.metrics, case.under("out/stats"))
    ours = to_theirs({"params": grads}, "evaluator")
    for name, expected in case.under("grad/param").items():
        close(ours[name], expected, **TENSOR, name=f"gradient of {name}")

    outputs = method.encode({"online": params}, {}, None)["online"]
    heads_of_theirs = case.under("out/head")
    assert len(outputs) == len(heads_of_theirs)
    for name, output in outputs.items():
        kind, feature = name.split("/")
        kind = {"logits": "label"}.get(kind, kind)
        theirs = heads_of_theirs[table.rename(f"online/{kind}_{feature}").split(".")[1]]
        if kind == "label":  # theirs are all of view 1, then all of view 2
            output = jnp.concatenate([output[:, 0], output[:, 1]])
        close(output, theirs, **TENSOR, name=name)

    val = {"online": outputs, "label": batch["label"], "latent": latents_of(angles)}
    whole = online.evaluate({"val": val}, relation="rotation")
    close_scores(
        {f"online/{name}": value for name, value in whole.items()}, case.under("out/stats")
    )


def metrics(case: Case) -> None:
    """Free functions; theirs that pick the off-diagonal of a matrix has no counterpart."""
    prediction, target = case["in/r2_output"], case["in/r2_target"]
    close(jax.jit(regression.r2)(prediction, target), case["out/r2_score"], **SCALAR, name="r2")
    for name, expected in case.under("out").items():
        if name.startswith("top"):
            share = classification.top_k(case["in/logits"], case["in/labels"], int(name[3:]))
            close(share[None], expected, **SCALAR, name=name)
    signs = jax.jit(lambda x: (collapse.correlation(x), collapse.spread(x)))
    for name in ("v", "noproj"):
        correlation, spread = signs(case["in/embedding"])
        close(correlation, case[f"out/coremb_{name}"], **SCALAR, atol=1e-5, name=f"cor {name}")
        close(spread, case[f"out/stdemb_{name}"], **SCALAR, name=f"std {name}")
    correlation, spread = signs(case["in/proj_out"])
    close(correlation, case["out/corhead_v"], **SCALAR, atol=1e-5, name="cor")
    close(spread, case["out/stdhead_v"], **SCALAR, name="std")

    features, temperature = jnp.asarray(case["in/nce_features"]), case.meta["nce"]["temp"]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def nce(features):
        views = jnp.split(features, 2)
        logits = contrastive.ntxent_logits(*views, temperature)
        return contrastive.ntxent(*views, temperature), logits

    (loss, logits), gradient = nce(features)
    close(loss, case["out/nce_loss"], **SCALAR, name="nce")
    close(gradient, case["grad/nce_features"], **TENSOR, name="gradient of nce")
    close(logits, case["out/nce_logits"], **TENSOR, name="logits")
    assert not case["out/nce_labels"].any()  # the partner comes first


def latents_of(poses: np.ndarray) -> np.ndarray:
    """Latents f64[N, 2, 7] of pairs with these relative poses; view 1 stands upright."""
    angles = quaternions.to_euler_xyz(poses.astype(np.float64))
    other_sign = np.sum(quaternions.from_euler_xyz(angles) * poses, axis=-1) < 0
    angles[:, 0] += 2 * np.pi * other_sign  # a whole turn is the same rotation with the other sign
    latents = np.zeros((len(poses), 2, 7))
    latents[:, 1, :3] = angles
    return latents


def dataset(case: Case) -> None:
    """The files of a few objects, read as a training pass of the reference reads them."""
    latents, meta = case["in/latents"], case.meta
    label_of = dict(zip(case["in/index"].tolist(), case["out/labels"].tolist()))
    labels = [label_of.get(row, 0) for row in range(len(latents))]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for row, name in enumerate(meta["objects"]):
            place = root / name.strip("/")
            place.mkdir(parents=True)
            for view in range(latents.shape[1]):
                np.save(place / f"latent_{view}.npy", latents[row, view])
                image = case.arrays.get(f"in/jpeg_{row}_{view}", np.zeros(0, np.uint8))
                (place / f"image_{view}.jpg").write_bytes(image.tobytes())
        source = threedie.ThreeDIE(
            root, meta["objects"], labels, range(max(labels) + 1), latents.shape[1]
        )
        # Their generator is numpy's old one; ours asks the new one the same question.
        random = np.random.RandomState(meta["np_random_seed"])
        views = np.stack(
            [random.choice(source.num_views, 2, replace=False) for _ in case["in/index"]]
        )
        np.testing.assert_array_equal(views, case["in/views"])
        records = source.read(case["in/index"], views)
        pictured = {
            row: [v for v in range(source.num_views) if f"in/jpeg_{row}_{v}" in case]
            for row in range(len(latents))
        }
        images = {
            row: source.read([row], np.array([views]))[0]["image"]
            for row, views in pictured.items()
            if views
        }

    assert [record["label"] for record in records] == case["out/labels"].tolist()
    latent = np.stack([record["latent"] for record in records])
    for cls, name in (("", "rotation"), ("All", "all"), ("RotColor", "rotation+color")):
        z = np.asarray(jax.jit(relation.relation(name).between)({"latent": latent}))
        angles = quaternions.relative_pose(latent[:, 0], latent[:, 1], form="euler")
        expected = case.under(f"out/Dataset3DIEBench{cls}")
        close(z, expected["quat"], rtol=0, atol=2e-6, name=f"{name} quat")
        euler = np.concatenate([angles, z[:, 4:]], axis=-1)
        close(euler, expected["euler"], rtol=0, atol=2e-6, name=f"{name} euler")

    normalise = "normalise({mean}, {std})".format(**meta["normalise"])
    normalised = augment.make([normalise])
    for row, pair in images.items():
        decoded = np.stack([decoding.decode(image) for image in pair])
        for image, view in zip(decoded, pictured[row]):
            np.testing.assert_array_equal(image, case[f"in/rgb_{row}_{view}"])
        seen = normalised(jax.random.key(0), {"views": decoded[None]})["views"][0]
        expected = case[f"out/image_pair_{row}"]
        close(np.moveaxis(seen, -1, 1), expected, rtol=0, atol=2e-6, name=f"pair {row}")


KINDS = {
    **NETWORKS,
    **EVALUATIONS,
    "dataset": dataset,
    "obj": objective,
    "dist2": distributed,
    "train_steps": train_steps,
    "hypernetwork": hypernetwork,
    "mlp_predictor": mlp_predictor,
    "projector": projector,
    "evaluator": evaluator,
    "metrics": metrics,
}
