"""Kinds of `airl` about MAE, and about linear evaluation of any frozen network."""

from __future__ import annotations

import functools
import re
from unittest import mock

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
    close_state,
    f64,
    images,
    in_f64,
    variables_of,
)
from kinds_airl_optimizers import rate

from jaxequi import names
from jaxequi.interop import mapping, networks
from jaxequi.methods import mae, supervised
from jaxequi.models import mae as decoders
from jaxequi.models.vit import ViT, layer_decay
from jaxequi.nn import transformer
from jaxequi.nn.norm import BatchNorm
from jaxequi.train import lars, optim
from jaxequi.types import OWN, collections

FIXED = ("pos_embed", "decoder_pos_embed")  # constants of ours


def vit(meta, **options) -> ViT:
    """The encoder that a case was made with."""
    shape = {"patch": meta["p"], "width": meta["D"], "depth": meta["depth"], "heads": meta["H"]}
    return ViT(**shape, mlp_ratio=meta["mlp"], **options)


def basics(case: Case) -> None:
    """Patches, tables of positions, their interpolation, and masking by noise."""
    meta = case.meta
    pixels = images(case["in/imgs"])
    patches = transformer.patchify(pixels, meta["patch"])
    close(patches, case["out/patches"], **EXACT, name="patches")
    whole = transformer.unpatchify(jnp.asarray(case["out/patches"]), *pixels.shape[1:3])
    close(np.moveaxis(whole, -1, 1), case["out/unpatchify"], **EXACT, name="pixels")
    for width, side, token in meta["posembed"]:
        positions = transformer.sincos_positions(width, side, side)
        expected = case[f"out/pos_embed_{width}_{side}_{'cls' if token else 'nocls'}"]
        close(positions if token else positions[1:], expected, **EXACT, name="positions")
    for i, (_, new, _) in enumerate(meta["interp_old_new_dim"]):
        found = transformer.resize_positions(jnp.asarray(case[f"in/interp_{i}"][0]), new, new)
        expected = case[f"out/interp_{i}"][0]
        close(found, expected, rtol=1e-4, atol=1e-6, name="interpolation")
    for i, ratio in enumerate(meta["ratios"]):
        x, noise = case[f"in/mask_x_{i}"], jnp.asarray(case[f"in/mask_noise_{i}"])
        kept = int(noise.shape[1] * (1 - ratio))
        keep, restore = mae.masking(noise, kept)
        np.testing.assert_array_equal(restore, case[f"out/ids_restore_{i}"])
        np.testing.assert_array_equal(restore >= kept, case[f"out/mask_{i}"])
        seen = np.take_along_axis(x, np.asarray(keep)[..., None], axis=1)
        close(seen, case[f"out/x_masked_{i}"], **EXACT, name="visible")


def _learnt(state):
    return {name: array for name, array in state.items() if name not in FIXED}


def moved_by(optimizer):
    """A step of an optimizer, as one program."""

    @jax.jit
    def step(grads, opt_state, params):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def forward(case: Case) -> None:
    """Both losses with all gradients, what the networks say, and two steps of AdamW."""
    meta = case.meta
    network = vit(meta)
    batch = {"views": jnp.asarray(images(case["in/imgs"]))[:, None]}
    noise = jnp.asarray(case["in/noise"])
    side = meta["hw"] // meta["p"]
    for width, name in ((meta["D"], "pos_embed"), (meta["Dd"], "decoder_pos_embed")):
        expected = case[f"param/{name}"][0]
        close(transformer.sincos_positions(width, side, side), expected, **EXACT, name=name)

    methods = {
        name: names.find("methods", "mae")(
            backbone=network,
            mask_ratio=meta["ratio"],
            normalize=name == "norm",
            decoder_width=meta["Dd"],
            decoder_depth=meta["dd"],
            decoder_heads=meta["Hd"],
        )
        for name in ("norm", "raw")
    }
    shapes, _ = jax.eval_shape(methods["norm"].init, jax.random.key(0), batch)
    state = _learnt(case.under("param"))
    start = mapping.from_torch(state, {"params": shapes}, table.mae)["params"]
    start = jax.tree.map(jnp.asarray, start)

    draw = jax.random.uniform

    def given(key, shape=(), *more, **options):
        """The case's noise; flax draws other shapes to see what initialisers would give."""
        return noise if shape == noise.shape else draw(key, shape, *more, **options)

    def gradient(method):
        def loss(params):
            return method.loss(params, {}, batch, jax.random.key(0), None)

        with mock.patch("jax.random.uniform", given):
            return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(start).compile()

    compiled = {name: gradient(method) for name, method in methods.items()}
    for name in methods:
        (loss, output), grads = compiled[name](start)
        close(loss, case[f"out/loss_{name}"], **FORWARD, name=f"loss {name}")
        token = output.features["representation"][:, 0]
        close(token, case["out/latent"][:, 0], **FORWARD, name="class token")
        ours = mapping.to_torch({"params": grads}, table.mae)
        for key, expected in case.under(f"grad/{name}").items():
            if key not in FIXED:
                close(ours[key], expected, **FORWARD, name=f"{name} gradient of {key}")

    kept = int(noise.shape[1] * (1 - meta["ratio"]))
    keep, restore = mae.masking(noise, kept)
    decoder = decoders.make(
        meta["p"],
        width=meta["Dd"],
        depth=meta["dd"],
        heads=meta["Hd"],
        mlp_ratio=meta["mlp"],
    )

    @jax.jit
    def decoded(params, images):
        latent = network.apply({"params": params["backbone"]}, images, True, keep)
        return latent, decoder.apply({"params": params["decoder"]}, latent, restore, side, side)

    latent, prediction = decoded(start, batch["views"][:, 0])
    close(latent, case["out/latent"], **FORWARD, name="latent")
    np.testing.assert_array_equal(restore, case["out/ids_restore"])
    np.testing.assert_array_equal(restore >= kept, case["out/mask"])
    close(prediction, case["out/pred"], **FORWARD, name="prediction")

    adamw, params = meta["adamw"], start
    optimizer = optim.make(
        "adamw",
        learning_rate=adamw["lr"],
        betas=tuple(adamw["betas"]),
        epsilon=adamw["eps"],
        weight_decay=adamw["weight_decay"],
        no_decay="bias|scale",
        total_steps=10,
        batch_size=meta["B"],
    )
    opt_state, update = jax.jit(optimizer.init)(params), moved_by(optimizer)
    steps = sum(key.startswith("adamw_loss_") for key in case.under("out"))
    for i in range(steps):
        (loss, _), grads = compiled["norm"](params)
        close(loss, case[f"out/adamw_loss_{i}"], **FORWARD, name=f"AdamW loss {i}")
        params, opt_state = update(grads, opt_state, params)
    weights = {"rtol": 1e-4, "atol": 2e-5}
    close_state({"params": params}, _learnt(case.under(f"out/adamw{steps}")), table.mae, weights)


def finetune(case: Case) -> None:
    """A classifier on the class token or the mean, and a step of AdamW with layer decay."""
    meta = case.meta
    batch = {
        "views": jnp.asarray(images(case["in/imgs"]))[:, None],
        "label": jnp.asarray(case["in/label"], jnp.int32),
    }
    adamw = meta["adamw"]
    for name, pool in (("gap", "mean"), ("cls", "token")):
        network = vit(meta, pool=pool, positions="learned")
        method = supervised.make(network, meta["C"])
        shapes, _ = jax.eval_shape(method.init, jax.random.key(0), batch)
        state = case.under(f"param/{name}")
        params = mapping.from_torch(state, {"params": shapes}, table.mae)["params"]
        params = jax.tree.map(jnp.asarray, params)

        def objective(params, method=method):
            # Without stochastic depth training and evaluation are the same.
            return method.loss(params, {}, batch, jax.random.key(0), None)

        (loss, output), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
        close(loss, case[f"out/{name}/loss"], **FORWARD, name=f"{name} loss")
        logits, features = (output.features[key][:, 0] for key in ("logits", "representation"))
        close(logits, case[f"out/{name}/logits"], **FORWARD, name=f"{name} logits")
        close(features, case[f"out/{name}/features"], **FORWARD, name=f"{name} features")
        ours = mapping.to_torch({"params": grads}, table.mae)
        for key, expected in case.under(f"grad/{name}").items():
            close(ours[key], expected, **FORWARD, name=f"{name} gradient of {key}")

        factors = layer_decay(meta["depth"], meta["ld"])
        optimizer = optim.make(
            "adamw",
            learning_rate=meta["lr"],
            betas=tuple(adamw["betas"]),
            epsilon=adamw["eps"],
            weight_decay=meta["wd"],
            no_decay="bias|scale|pos_embed|cls_token",
            scales=factors,
            total_steps=10,
            batch_size=meta["B"],
        )
        groups = meta["groups"][name]
        scales = mapping.to_torch(
            {"params": jax.tree.map(np.full_like, params, scales_of(params, factors))}, table.mae
        )
        assert set(scales) == set(groups)
        for key, (scale, decay) in groups.items():
            close(scales[key].max(), scale, rtol=1e-6, name=f"scale of {key}")
            vector = state[key].ndim == 1 or key in ("pos_embed", "cls_token")
            assert decay == (0 if vector else meta["wd"])
        params, _ = moved_by(optimizer)(grads, jax.jit(optimizer.init)(params), params)
        expected = case.under(f"out/{name}/adamw")
        close_state({"params": params}, expected, table.mae, {"rtol": 1e-4, "atol": 2e-5})


def scales_of(params, factors):
    """The factor of each parameter's learning rate."""

    def of(path, leaf):
        del leaf
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        return next(factor for pattern, factor in factors if re.search(pattern, path))

    return jax.tree_util.tree_map_with_path(of, params)


HEAD = "classification-all-linear"


class Probe:
    """`methods.linear` with the case's classifier on the case's frozen network, and its loop."""

    def __init__(self, network, frozen, optimizer, state, torch_names, x, classes, **options):
        self.names = mapping.by_module(
            {f"{HEAD}/linear_0": torch_names[0], f"{HEAD}-norm": torch_names[1]}.get
        )
        method = names.find("methods", "linear")(
            backbone=network,
            num_classes=classes,
            heads={"classification": ("linear",)},
            **options,
        )
        shapes, extra = jax.eval_shape(method.init, jax.random.key(0), {"views": x[:, None]})
        tree = f64(mapping.from_torch(state, {"params": shapes, **collections(extra)}, self.names))
        self.params = tree.pop("params")
        self.extra = {**tree, OWN: {"backbone": frozen}}
        self.encode = jax.jit(method.encode)
        self.opt_state = jax.jit(optimizer.init)(self.params)

        @jax.jit
        def step(params, extra, opt_state, batch):
            loss = jax.value_and_grad(method.loss, has_aux=True)
            (value, output), grads = loss(params, extra, batch, jax.random.key(0), None)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return value, output, grads, params, opt_state

        self.compiled = step

    def step(self, x, labels):
        """Take a step; returns loss, output and gradient."""
        batch = {"views": jnp.asarray(x)[:, None], "label": jnp.asarray(labels, jnp.int32)}
        *seen, self.params, self.opt_state = self.compiled(
            self.params, self.extra, self.opt_state, batch
        )
        self.extra = seen[1].extra
        return seen

    def logits(self, x):
        """Of images, in evaluation mode."""
        found = self.encode(self.params, self.extra, jnp.asarray(x)[:, None])
        return found["heads"][HEAD][:, 0]


@in_f64  # the rates of some of these protocols carry the rounding of f32 past the tolerance
def linear_eval(case: Case) -> None:
    """Steps of a classifier on frozen features in evaluation mode."""
    meta = case.meta
    net = backbone(meta, jnp.float64)
    state = {k: v for k, v in case.under("param/backbone").items() if not k.startswith("fc")}
    x = [f64(images(case[f"in/x_{i}"])) for i in range(len(case["out/lr_used"]))]
    frozen = f64(variables_of(state, net, x[0], names=table.RESNET))

    total = meta["total_epochs"] * meta["iters_per_epoch"]
    parts = [m / meta["total_epochs"] for m in meta["milestones"]]
    options = rate(meta, meta["lr"], meta["scheduler"], parts, total, 0)
    schedule = optim.make_schedule(
        options["schedule"], meta["lr"], total, drops=options.get("drops", ())
    )
    optimizer = optim.make(
        "sgd",
        learning_rate=meta["lr"],
        momentum=meta["momentum"],
        nesterov=meta["nesterov"],
        total_steps=total,
        batch_size=len(x[0]),
        **options,
    )
    prefix = "" if meta["cls_bn"] else "0."

    def classifier(key):
        return {f"{prefix}{name}": array for name, array in case.under(key).items()}

    start = classifier("param/classifier")
    more = {"batch_norm": "behind"} if meta["cls_bn"] else {}
    probe = Probe(net, frozen, optimizer, start, "01", x[0], len(start["0.bias"]), **more)
    table_of_rates = [schedule(i) for i in range(len(case["out/lr_table"]))]
    close(table_of_rates, case["out/lr_table"], **EXACT, name="rates")
    for i, expected in enumerate(case["out/lr_used"]):
        close(schedule(i), expected, **EXACT, name="rate")
        loss, output, _ = probe.step(x[i], case[f"in/y_{i}"])
        features = output.features["representation"][:, 0]
        close(features, case[f"out/feat_{i}"], **FORWARD, name="features")
        close(loss, case[f"out/loss_{i}"], **FORWARD, name=f"loss {i}")
        for k in (1, 5):
            top = 100 * output.metrics[f"top{k}/{HEAD}"]
            close(top, case[f"out/top{k}_{i}"], **EXACT, name=f"top {k}")
    after = {"params": probe.params, **collections(probe.extra)}
    close_state(after, classifier("out/classifier"), probe.names, FORWARD)
    close(probe.logits(x[0]), case["out/eval_logits_batch0"], **FORWARD, name="eval logits")


def linprobe(case: Case) -> None:
    """Steps of MoCo v3's LARS on a norm without scale and shift, and a linear layer."""
    meta = case.meta
    network = vit(meta, pool="mean" if meta["global_pool"] else "token", positions="learned")
    state = {k: v for k, v in case.under("param").items() if not k.startswith("head.")}
    x = [images(case[f"in/imgs_{i}"]) for i in range(len(meta["lrs"]))]
    shapes = jax.eval_shape(lambda key: network.init(key, x[0], True), jax.random.key(0))
    frozen = mapping.from_torch(state, networks.under_backbone(shapes), table.mae)
    frozen = networks.backbone(frozen)
    rates = jnp.asarray(meta["lrs"])
    optimizer = lars.lars_mocov3(
        lambda t: rates[t],
        meta["weight_decay"],
        None,
        momentum=meta["momentum"],
        trust=meta["trust"],
    )
    head = {k: v for k, v in case.under("param").items() if k.startswith("head.")}
    probe = Probe(
        network,
        frozen,
        optimizer,
        head,
        ("head.1", "head.0"),
        x[0],
        meta["C"],
        batch_norm="before",
        norm_epsilon=meta["ln_eps"],
        norm=functools.partial(BatchNorm, momentum=meta["bn_momentum"]),
    )
    for i in range(len(meta["lrs"])):
        loss, _, grads = probe.step(x[i], case[f"in/label_{i}"])
        close(loss, case[f"out/loss_{i}"], **FORWARD, name=f"loss {i}")
        for key, leaf in (("weight", "kernel"), ("bias", "bias")):
            gradient, value = (tree[HEAD]["linear_0"][leaf].T for tree in (grads, probe.params))
            close(gradient, case[f"grad/{key}_{i}"], **FORWARD, name=f"gradient of {key} {i}")
            close(value, case[f"out/{key}_{i}"], **FORWARD, name=f"{key} {i}")
    stored = {f"head.0.running_{k}": case[f"out/bn_running_{k}"] for k in ("mean", "var")}
    close_state(collections(probe.extra), stored, probe.names, FORWARD)
    close(probe.logits(x[-1]), case["out/eval_logits"], **FORWARD, name="eval logits")


MAE = {
    "mae_basics": basics,
    "mae_forward": forward,
    "mae_vit_finetune": finetune,
    "mae_linprobe": linprobe,
    "linear_eval": linear_eval,
}
