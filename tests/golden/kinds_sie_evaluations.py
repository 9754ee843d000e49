"""Reproductions of `golden/sie`: frozen evaluations, retrieval, and what a checkpoint holds."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from case import Case, close
from flax import traverse_util

from configs import sie as sie_config
from jaxequi.evals import heads, prediction, retrieval
from jaxequi.groups import quaternions
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import sie as sie_table
from jaxequi.methods import linear
from jaxequi.nn.heads import Hypernetwork
from jaxequi.nn.norm import BatchNorm
from jaxequi.train import optim
from jaxequi.train.state import initialise
from jaxequi.train.step import make_train_step
from jaxequi.types import OWN


def retrieval_metrics(case: Case):
    weight = case["param/predictor.hypernet.net.0.weight"]
    predict = jax.tree_util.Partial(
        Hypernetwork().apply, {"params": {"hypernetwork_0": {"kernel": weight.T}}}
    )
    sets, count = {}, case.meta["views"]
    for name in ("train", "val"):
        embedding, latent = case[f"in/embeddings_{name}"], case[f"in/latents_{name}"]
        latent = latent.reshape(-1, count, latent.shape[-1])
        pose = quaternions.from_euler_xyz(latent[..., :3])  # here the latents stay float64
        sets[name] = {
            "embedding": embedding.reshape(-1, count, embedding.shape[-1]),
            "latent": latent,
            "relation": quaternions.relative(pose[:, :1], pose).astype(np.float32),
        }
    for normalise, folder in ((True, "norm"), (False, "nonorm")):
        found = retrieval.ranks(predict, sets["val"], normalise=normalise)
        expected = case[f"out/{folder}/MRR/val-val/ranks"]
        np.testing.assert_array_equal(found.reshape(-1), expected)
        errors = prediction.errors(sets, predict, normalise=normalise)
        for mode in prediction.MODES:
            asked = sets[mode.partition("-")[0]]
            scores = retrieval.scores(retrieval.ranks(predict, asked, normalise=normalise))
            scores["pre"] = errors[mode]
            for theirs, value in case.under(f"out/{folder}/{mode}").items():
                ours = {"MRR": "mrr", "PRE": "pre"}.get(theirs, theirs.replace("H@", "hit@"))
                close(scores[ours], value, rtol=0, atol=1e-5, name=f"{mode} {theirs}")
        both = [sets[name] for name in ("train", "val")]
        at, _ = prediction.nearest(predict, sets["val"], both, normalise=normalise)
        train, val = (quaternions.from_euler_xyz(s["latent"][..., :3]).reshape(-1, 4) for s in both)
        dots = np.sum(val * np.concatenate([train, val])[at.reshape(-1)], axis=-1)
        close(dots, case[f"out/{folder}/PRE/val-all/dots"], rtol=0, atol=1e-6, name="dots")


class StandIn(nn.Module):
    """The backbone of the evaluation cases: Linear without bias, BatchNorm, ReLU."""

    features: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(self.features, use_bias=False, name="linear")(x)
        return nn.relu(BatchNorm(use_running_average=not train, name="norm")(x))


def evaluation(case: Case):
    meta, x, param = case.meta, case["in/x"].swapaxes(1, 2), case.under("param")
    steps, size, width = meta["steps"], x.shape[1], len(param["backbone.0.weight"])
    layers = sorted({k.rpartition(".")[0] for k in param if k.startswith("head")})
    script = meta["upstream"].partition(".py")[0]
    name = {"eval_classification": "classification", "eval_color_prediction": "color"}.get(script)
    name = name or {"quat": "rotation", "euler": "euler"}[meta["target"]]
    part = "all" if meta["equi_dims"] == width else "equivariant"
    part = "invariant" if meta["inv_part"] else part
    known = linear.task(name, len(param[f"{layers[-1]}.bias"]))
    target = jnp.asarray(case["in/target"])
    kind = "linear" if len(layers) == 1 else "deep"
    # the case has the targets themselves: one batch a step, by its number
    stored = known._replace(target=lambda batch: target[batch["index"][0]])
    head = linear.head(name, part, kind, width, meta["equi_dims"])
    method = linear.of_heads([head], {name: stored}, StandIn(width), drift=True)
    optimizer = optim.make(
        "adam",
        learning_rate=meta["lr"],
        weight_decay=meta["wd"],
        batch_size=size,
        total_steps=steps,
    )
    step = make_train_step(
        method, optimizer, lambda key, batch: batch, total_steps=steps, steps_per_epoch=steps
    )
    batches = [{"views": x[i], "index": np.full(size, i, np.int32)} for i in range(steps + 1)]

    table = mapping.by_module(lambda path: {"linear": "0", "norm": "1"}[path])
    drawn = initialise(method, optimizer, jax.random.key(0), batches[0])
    backbone = {k.removeprefix("backbone."): v for k, v in param.items() if "backbone" in k}
    backbone = mapping.from_torch(backbone, drawn.extra[OWN]["backbone"], table)
    params = {
        head.name: {
            f"linear_{i}": {"kernel": param[f"{k}.weight"].T, "bias": param[f"{k}.bias"]}
            for i, k in enumerate(layers)
        }
    }
    state = drawn.replace(
        params=params,
        extra={OWN: {"backbone": backbone}},
        opt_state=jax.jit(optimizer.init)(params),
    )

    @jax.jit
    def gradient(params, extra, batch):
        return jax.grad(method.loss, has_aux=True)(params, extra, batch, None, None)[0]

    tolerance = {"rtol": 1e-4, "atol_of_max": 1e-4}

    def close_heads(tree, prefix):
        for i, k in enumerate(layers):
            ours = tree[head.name][f"linear_{i}"]
            close(ours["kernel"].T, case[f"{prefix}/{k}.weight"], **tolerance, name=f"{prefix} {k}")
            close(ours["bias"], case[f"{prefix}/{k}.bias"], **tolerance, name=f"{prefix} {k}")

    close_heads(gradient(state.params, state.extra, batches[0]), "grad/param")
    losses, measured = [], []
    step = jax.jit(step)
    keys = [f"r2/{head.name}"] if known.columns else [f"top1/{head.name}", f"top5/{head.name}"]
    for batch in batches[:-1]:
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
        measured.append([metrics[key] for key in keys])
    close(losses, case["out/train_loss"], **tolerance, name="loss")
    expected = case["out/train_metric"].reshape(steps, -1)
    close(measured, expected, rtol=1e-4, atol=1e-4, name="metric")
    after = mapping.to_torch(state.extra[OWN]["backbone"], table)
    for key, value in case.under("out/param_after").items():
        if key.startswith("backbone") and not key.endswith("num_batches_tracked"):
            close(after[key.removeprefix("backbone.")], value, **tolerance, name=key)
    close_heads(state.params, "out/param_after")

    encode = jax.jit(method.encode)
    outputs = encode(state.params, state.extra, batches[-1]["views"])["heads"]
    output = np.asarray(outputs[head.name])
    close(output.reshape(size, -1), case["out/val_output"], **tolerance, name="validation")
    scored = known._replace(target=lambda features: np.asarray(target[-1]))
    scores = heads.evaluate({"val": {"heads": {head.name: output}}}, {name: scored})
    for ours in ("r2", "mse", "top1", "top5"):
        if f"out/val_{ours}" in case:
            theirs = np.ravel(case[f"out/val_{ours}"])[0]
            close(scores[f"{ours}/{head.name}"], theirs, rtol=1e-4, atol=1e-4, name=ours)


def predictor_of(args):
    """The predictor of ours that their arguments ask for."""
    if args["predictor_type"] == "mlp":
        return {"name": "mlp", "layers": args["tf_num_layers"]}
    return {
        "name": "hypernetwork",
        "hidden": args["predictor"],
        "deep": args["hypernetwork"] == "deep",
        "bias": args["bias_hypernet"],
        "predicted_bias": args["bias_pred"],
        "relu": args["predictor_relu"],
    }


VARIANTS = {  # their class -> the variant of configs/sie.py
    "SIE": "sie",
    "SIENoVar": "sie_novar",
    "SIEOnlyEqui": "only_equi",
    "SIERotColor": "sie_rotcolor",
    "VICReg": "vicreg",
    "VICRegPartInv": "vicreg_partinv",
    "VICRegEquiMod": "vicreg_equimod",
    "SimCLR": "simclr",
    "SimCLROnlyEqui": "simclr_only_equi",
    "SimCLROnlyEquiRotColor": "simclr_only_equi_rotcolor",
    "SimCLREquiMod": "simclr_equimod",
    "SimCLREquiModRotColor": "simclr_equimod_rotcolor",
    "SimCLRAugSelf": "simclr_augself",
    "SimCLRAugSelfRotColor": "simclr_augself_rotcolor",
}


def checkpoint_manifest(case: Case):
    manifest, args = case.meta["manifest"], case.meta["args"]
    [backbone] = (v for k, v in manifest.items() if k.startswith("backbone"))
    backbone = backbone.get("state", backbone)
    classes = [name for name in manifest if not name.startswith("backbone")]
    for name, total in zip(classes, case["out/total_params"], strict=True):
        config = sie_config.get_config(f"{VARIANTS[name]},paper")
        config.backbone.architecture = args["arch"]
        sie_config._sizes(config, args["equi"], args["mlp"])
        if "predictor" in config.method:
            config.method.predictor = predictor_of(args)
        config.online.whole_parts = True
        shapes = networks.shapes(config, case.meta["num_classes"])
        found = {}
        for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items():
            key, layout = sie_table.TABLE(path)
            found[f"module.{key}"] = layout.to_torch(np.broadcast_to(0, leaf.shape)).shape
            if key.endswith("running_mean"):
                found[f"module.{key.replace('running_mean', 'num_batches_tracked')}"] = ()
        expected = {k: tuple(v) for k, v in {**manifest[name]["state"], **backbone}.items()}
        different = set(found.items()) ^ set(expected.items())
        assert not different, f"{name}: {sorted(different)}"
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == total, name


EVALUATIONS = {
    "eval": evaluation,
    "checkpoint_manifest": checkpoint_manifest,
    "retrieval_metrics": retrieval_metrics,
}
