"""Cases of `eqinv`: the fine-tuning (stages 2 and 3) and its baselines."""

from __future__ import annotations

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from case import Case, close
from kinds_ipirm import KINDS as IPIRM

from jaxequi.augment import mixture
from jaxequi.interop import mapping
from jaxequi.methods import eqinv, supervised
from jaxequi.methods._siamese import Siamese
from jaxequi.models.torchvision_resnet import BasicBlock, Bottleneck, ResNet
from jaxequi.nn import mask
from jaxequi.nn.conv import Conv
from jaxequi.nn.heads import Linear, Projector
from jaxequi.nn.norm import BatchNorm
from jaxequi.objectives import classification, environments
from jaxequi.objectives.contrastive import l2_normalize, supcon
from jaxequi.train import optim
from jaxequi.types import Progress

LOSS = {"rtol": 1e-5, "atol": 1e-6}
GRADIENT = {"rtol": 1e-4, "atol_of_max": 2e-5}
FINAL = {name: 5 * value for name, value in GRADIENT.items()}
FORWARD = {"rtol": 1e-4, "atol": 1e-5}
# As one program each: alone, every operation would be compiled.
SUPCON = jax.jit(jax.value_and_grad(supcon), static_argnums=(2, 3))
TOP_K = jax.jit(classification.top_k, static_argnums=2)


class Identity(nn.Module):
    """Features as they are given, f32[B, 1, 1, D]."""

    features: int

    @nn.compact
    def __call__(self, images, train):
        return images.reshape(len(images), -1)


class Dense(nn.Module):
    """The references' small backbone: flattened, linear, BatchNorm, ReLU."""

    features: int

    @nn.compact
    def __call__(self, images, train):
        x = Linear(self.features, use_bias=False, name="0")(images.reshape(len(images), -1))
        return nn.relu(BatchNorm(use_running_average=not train, name="1")(x))


def table(first: int = 0):
    """Names of the fine-tuned network and of the baseline; `first` layer of the backbone."""
    layers = {"linear_0": "0", "norm_0": "1", "linear_1": "3"}

    def rename(module):
        part, _, layer = module.partition("/")
        if part == "backbone":
            return f"model.{int(layer) + first}"
        return "fc" if part == "classifier" else f"mlp.{layers[layer]}"

    modules = mapping.by_module(rename)

    def names(path):
        return ("mask_layer", mapping.SAME) if path.endswith("mask/values") else modules(path)

    return names


def method_of(case: Case, backbone=None, **more):
    """The method with the widths and hyper-parameters of a case."""
    meta, given = case.meta, case.under("param")
    assert meta.get("scaler", eqinv.SCALE) == eqinv.SCALE
    classes, width = given["fc.weight"].shape
    taken = ("inv_weight", "inv_start", "cont_weight", "temperature", "base_temperature")
    return eqinv.make(
        backbone=backbone or Identity(width),
        num_classes=classes,
        examples=meta.get("dataset_size", 1),
        activation=meta.get("activat_type", "sigmoid"),
        projector="-".join(str(given[f"mlp.{i}.weight"].shape[0]) for i in (0, 3)),
        **{name: meta[name] for name in taken if name in meta},
        **more,
    )


def start(method, batch, state, names=None):
    """Parameters and state of a method from a torch state dict."""
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    own = shapes[1].pop("own", None)
    tree = mapping.from_torch(state, {"params": shapes[0], **shapes[1]}, names or table())
    tree = jax.tree.map(jnp.asarray, tree)
    params = tree.pop("params")
    return params, tree if own is None else {**tree, "own": own}


def as_views(*features):
    """Features f32[B, D] as views f32[B, V, 1, 1, D]."""
    return jnp.asarray(np.stack([np.reshape(f, (len(f), 1, 1, -1)) for f in features], axis=1))


def at_epoch(epoch) -> Progress:
    return Progress(jnp.int32(0), jnp.float32(epoch), jnp.float32(0))


def close_gradients(grads, expected, names=None, tolerance=GRADIENT):
    """Compare gradients of parameters under torch's names; one of them alone may be stored."""
    ours = mapping.to_torch({"params": grads}, names or table())
    for name, theirs in expected.items():
        close(ours[name], theirs, **tolerance, name=name)


def close_state(params, extra, expected, names=None, tolerance=GRADIENT):
    tree = {"params": params, **{k: v for k, v in extra.items() if k != "own"}}
    ours = mapping.to_torch(tree, names or table())
    for name, theirs in expected.items():
        if not name.endswith("num_batches_tracked"):
            close(ours[name], theirs, **tolerance, name=name)


def supcon_case(case: Case):
    meta, labels = case.meta, jnp.asarray(case["in/labels"])
    chosen = jnp.asarray(case["in/choose_pos"]) if meta["choose_pos"] else None
    given = labels, meta["temperature"], meta["base_temperature"], chosen
    value, gradient = SUPCON(jnp.asarray(case["in/features"]), *given)
    close(value, case["out/loss"], **LOSS, name="loss")
    close(gradient, case["grad/features"], **GRADIENT, name="gradient")


def supcon_edge(case: Case):
    """Values that are no numbers are the same; what is not counted has no gradient that is none."""
    meta = case.meta
    for name in sorted({key.split("/")[0] for key in case.under("in")}):
        given = case.under(f"in/{name}")
        features, labels = jnp.asarray(given["features"]), jnp.asarray(given["labels"])
        chosen = labels == given["choose_class"] if "choose_class" in given else None
        with jax.debug_nans(False):
            value, gradient = SUPCON(
                features, labels, meta["temperature"], meta["base_temperature"], chosen
            )
        expected, slope = case[f"out/{name}/loss"], case.arrays.get(f"grad/{name}/features")
        np.testing.assert_array_equal(np.isnan(value), np.isnan(expected), err_msg=name)
        if np.isnan(expected):
            continue
        close(value, expected, **LOSS, name=name)
        assert np.isfinite(gradient).all(), name
        if slope is not None and np.isfinite(slope).all():
            # Of two rows alone the gradient is 0, and the stored one is rounding.
            close(gradient, slope, **GRADIENT, atol=1e-6, name=name)


def mask_case(case: Case):
    """Forward and the gradient of each output alone; evaluation."""
    method, given = method_of(case), case.under("param")
    names = table()
    feature = as_views(case["in/feature"], case["in/feature"])
    params, extra = start(method, {"views": feature}, given)
    network = eqinv.Network(
        Identity(feature.shape[-1]),
        mask.Mask(feature.shape[-1], case.meta["activat_type"]),
        Projector(
            tuple(given[f"mlp.{i}.weight"].shape[0] for i in (0, 3)), bias=False, last_bias=True
        ),
        Linear(len(given["fc.bias"])),
    )
    state = {"batch_stats": extra["batch_stats"]}

    def see(params, feature):
        return network.apply({"params": params, **state}, feature, True, mutable=["batch_stats"])

    def gradients(params, images):
        """Of the weighted sum of each output."""
        fields = {"embedding": "mlp", "masked": "inv", "logits": "out"}
        return {
            head: jax.grad(
                lambda *a, field=field, r=case[f"in/r_{head}"]: jnp.sum(
                    r * getattr(see(*a)[0], field)
                ),
                (0, 1),
            )(params, images)
            for field, head in fields.items()
        }

    images = feature[:, 0]
    (seen, after), found_gradients = jax.jit(lambda *a: (see(*a), gradients(*a)))(params, images)
    for head, field in (("mlp", "embedding"), ("inv", "masked"), ("out", "logits")):
        stored = {"mlp": "mlp", "inv": "masked_inv", "out": "logits"}[head]
        found = getattr(seen, field)
        close(found, case[f"out/{stored}"], **LOSS, name=stored)
        grads, of_feature = found_gradients[head]
        expected = case.under(f"grad/{'logits' if head == 'out' else head}")
        theirs = expected.pop("feature")
        if head == "inv":
            np.testing.assert_array_equal(of_feature, 0)
            np.testing.assert_array_equal(theirs, 0)
        close(of_feature.reshape(theirs.shape), theirs, **GRADIENT, name=f"{head}: feature")
        close_gradients(grads, expected, names)
    close_state({}, after, case.under("out/after_train"), names)
    given = params, {**after, "own": extra["own"]}, feature[:, :1]
    evaluated = jax.jit(method.encode)(*given)
    for name, stored in (("logits", "logits"), ("representation", "feature"), ("embedding", "mlp")):
        close(evaluated[name][:, 0], case[f"out/eval_{stored}"], **LOSS, name=f"eval {name}")


def mask_gumbel(case: Case):
    noise, r = jnp.asarray(case["in/gumbel_noise"]), case["in/r"][0]

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.grad, has_aux=True)
    def gradient(x, soft):
        found = mask.activate(x, "gumbel", noise, soft=soft)
        return jnp.sum(r * found), found

    for kind in ("hard", "soft"):
        grads, found = gradient(jnp.asarray(case["in/x"]), kind == "soft")
        close(found, case[f"out/{kind}"][0], **LOSS, name=kind)
        close(grads, case[f"grad/{kind}_x"], **GRADIENT, name=f"gradient of {kind}")


def env_build(case: Case):
    feature, labels = case["in/feature"], case["in/labels"]
    classes = case.meta["num_class"]
    for name, stored in (("debias", True), ("plain", False), ("debias_masked", True)):
        given = feature * case["in/mask"] if name.endswith("masked") else feature
        score = environments.scores(given, labels, classes, stored)
        found = environments.assign(given, labels, classes, stored)
        np.testing.assert_array_equal(found, case[f"out/{name}/assign"])
        for k in range(classes):
            others = np.flatnonzero(labels != k)
            close(score[k, others], case[f"out/{name}/score_{k}"], rtol=0, atol=2e-6, name=name)
            _close_halves(case, f"out/{name}/env_{k}", score[k, others], others)


def _close_halves(case: Case, key: str, score, others):
    """The halves as the reference lists them, by falling score."""
    order = others[np.argsort(-score, kind="stable")]
    half = -(-len(order) // 2)
    np.testing.assert_array_equal(order[:half], case[f"{key}_0"])
    np.testing.assert_array_equal(order[half:], case[f"{key}_1"])


def env_ties(case: Case):
    feature, labels = case["in/feature"], case["in/labels"]
    debias, classes = case.meta["class_debias_logits"], len(case["out/assign"])
    score = environments.scores(feature, labels, classes, debias)
    found = environments.assign(feature, labels, classes, debias)
    np.testing.assert_array_equal(found, case["out/assign"])
    for k in range(classes):
        others = np.flatnonzero(labels != k)
        close(score[k, others], case[f"out/score_{k}"], rtol=0, atol=2e-6, name="score")
        _close_halves(case, f"out/env_{k}", score[k, others], others)
    numbers = case["out/small_num_env"]
    labels = case["in/small_labels"]
    small = environments.assign(case["in/small_feature"], labels, len(numbers), debias)
    np.testing.assert_array_equal(small.max(axis=1) + 1, numbers)


def step(case: Case):
    """One training step, and the one before the penalty begins."""
    meta, method = case.meta, method_of(case)
    hard = ("feature1_hard", "feature2_hard") if meta["random_aug"] else ()
    order = ("feature1", "feature2", *hard)
    batch = {
        "views": as_views(*(case[f"in/{name}"] for name in order)),
        "label": jnp.asarray(case["in/target"], jnp.int32),
        "index": jnp.asarray(case["in/index"], jnp.int32),
    }
    params, extra = start(method, batch, case.under("param"))
    environment = jnp.asarray(case["in/env_assign"], jnp.int8)
    extra = {**extra, "own": {"environments": environment}}

    def loss(params, views, epoch):
        given = {**batch, "views": views}
        return method.loss(params, extra, given, jax.random.key(0), at_epoch(epoch))

    call = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    for prefix, epoch, weight in (
        ("", meta["epoch"], meta["inv_weight"]),
        ("prestart/", meta["inv_start"] - 1, 0.0),
    ):
        (total, output), (grads, of_views) = call(params, batch["views"], epoch)
        metrics, stored = output.metrics, f"out/{prefix}"
        close(total, case[f"{stored}loss_all"], **LOSS, name="all")
        close(metrics["loss/erm"], case[f"{stored}loss_erm"], **LOSS, name="erm")
        close(metrics["loss/contrastive"], case[f"{stored}loss_cont"], **LOSS, name="contrastive")
        close(weight * metrics["loss/penalty"], case[f"{stored}loss_inv"], **LOSS, name="penalty")
        logits = np.swapaxes(output.features["logits"], 0, 1).reshape(-1, meta["class_num"])
        for k in (1, 5):
            share = 100 * TOP_K(logits, np.tile(batch["label"], 2), k)
            close(share, case[f"{stored}acc{k}"], rtol=1e-5, name=f"top {k}")
        close(100 * metrics["accuracy"], case[f"{stored}acc1"], rtol=1e-5, name="accuracy")
        expected = case.under(f"grad/{prefix}")
        expected = {k: v for k, v in expected.items() if not k.startswith("prestart")}
        for i, name in enumerate(order):
            theirs = expected.pop(name)
            found = np.asarray(of_views)[:, i].reshape(theirs.shape)
            close(found, theirs, **GRADIENT, name=name)
        close_gradients(grads, expected)
        if not prefix:
            close_state({}, output.extra, case.under("out/after"))
    if "out/env_cont" in case:
        _close_risks(case, batch, params, environment)


def _close_risks(case: Case, batch, params, environment):
    """The loss of each class in each environment, and its variance."""
    meta = case.meta
    features = np.concatenate(
        [np.reshape(batch["views"][:, v], (len(batch["label"]), -1)) for v in (0, 1)]
    )
    labels, index = (np.tile(batch[name], 2) for name in ("label", "index"))

    @jax.jit
    def losses(values):
        rows = mask.activate(values, meta["activat_type"]) * features
        seen = environments.look_up(environment, labels, index)
        temperatures = meta["temperature"], meta["base_temperature"]
        return environments.risks(rows, labels, seen, *temperatures).loss

    at = [np.argmax(labels == k) for k in case["out/classes"]]
    loss = meta["cont_weight"] * np.asarray(losses(params["mask"]["values"]))[at]
    close(loss, case["out/env_cont"], **LOSS, name="environments")
    close(np.var(loss, axis=1, ddof=1), case["out/class_var"], **LOSS, name="variance")
    assert set(np.unique(labels)) == set(case["out/classes"].tolist())


class Steps:
    """Steps of a method with torch's SGD."""

    def __init__(self, meta, method, params, extra):
        self.params, self.extra = params, extra
        taken = {name: meta[name] for name in ("momentum", "weight_decay")}
        self.optimizer = optim.make(
            "sgd", learning_rate=meta["lr"], total_steps=100, batch_size=1, **taken
        )
        self.state = jax.jit(self.optimizer.init)(params)

        @jax.jit
        def step(params, extra, state, batch, progress):
            value = jax.value_and_grad(method.loss, has_aux=True)
            (loss, output), grads = value(params, extra, batch, jax.random.key(0), progress)
            updates, state = self.optimizer.update(grads, state, params)
            return loss, output, optax.apply_updates(params, updates), state

        self.compiled = step

    def __call__(self, batch, epoch=0):
        loss, output, self.params, self.state = self.compiled(
            self.params, self.extra, self.state, batch, at_epoch(epoch)
        )
        self.extra = output.extra
        return loss, output


def train_steps(case: Case):
    """The table from the first network, then steps with it."""
    meta, names = case.meta, table()
    method = method_of(case, Dense(case["param/model.0.weight"].shape[0]))

    def batch(i):
        return {
            "views": as_views(case["in/x1"][i], case["in/x2"][i]),
            "label": jnp.asarray(case["in/target"][i], jnp.int32),
            "index": jnp.asarray(case["in/index"][i], jnp.int32),
        }

    params, extra = start(method, batch(0), case.under("param"), names)
    memory = as_views(case["in/memory"])
    encode = jax.jit(method.encode)
    found = encode(params, extra, memory)
    features = {
        "representation": np.asarray(found["representation"]),
        "label": case["in/memory_labels"],
        "index": np.arange(meta["dataset_size"]),
    }
    assert method.refit.every_epochs == 0
    extra = method.refit.fn(extra, features, jax.random.key(0))
    np.testing.assert_array_equal(extra["own"]["environments"], case["in/env_assign"])
    take = Steps(meta, method, params, extra)
    for i in range(meta["steps"]):
        _, output = take(batch(i), meta["epoch"])
        for name, stored, weight in (
            ("erm", "erm", 1),
            ("contrastive", "cont", 1),
            ("penalty", "inv", meta["inv_weight"]),
        ):
            value = weight * output.metrics[f"loss/{name}"]
            close(value, case[f"out/loss_{stored}"][i], rtol=1e-4, name=f"{name} {i}")
        share = 100 * output.metrics["accuracy"]
        close(share, case["out/acc1"][i], rtol=1e-5, name="accuracy")
    close_state(take.params, take.extra, case.under("out/final"), names, FINAL)
    count = len(case["out/eval_logits"])
    logits = encode(take.params, take.extra, memory)["logits"][:count, 0]
    close(logits, case["out/eval_logits"], **FINAL, name="evaluation")
    rates = case["out/lr_schedule_50"]
    drops = tuple(e / len(rates) for e in np.flatnonzero(np.diff(rates)) + 1)
    schedule = optim.make_schedule("drops", float(rates[0]), len(rates), drops=drops, factor=0.1)
    close([schedule(epoch) for epoch in range(len(rates))], rates, rtol=1e-5, name="rate")


def mixup(case: Case):
    """Mixed images, targets and the three losses with their gradients."""
    classes, epsilon = case.meta["num_class"], case.meta["epsilon"]
    views = jnp.moveaxis(jnp.asarray(case["in/x"]), 1, -1)
    label, share = jnp.asarray(case["in/y"]), jnp.float32(case["in/lam"])
    partner = case["in/index"]
    mixed = jnp.moveaxis(mixture.mix(views, views[partner], share), -1, 1)
    close(mixed, case["out/mixed"], rtol=1e-5, atol=1e-6, name="mixed")
    np.testing.assert_array_equal(label[partner], case["out/y_b"])
    logits = mixed.reshape(len(mixed), -1) @ case["in/weight"].T
    close(logits, case["out/logits"], rtol=1e-4, atol_of_max=1e-5, name="logits")
    one = jnp.float32(1)

    @jax.jit
    @jax.value_and_grad
    def entropy(x, rows):
        return -jnp.mean(jnp.sum(rows * jax.nn.log_softmax(x), axis=-1))

    for name, first, part, smoothing in (
        ("loss", label[partner], share, 0.0),
        ("loss_label_smooth", label[partner], share, epsilon),
        ("plain_label_smooth", label, one, epsilon),
    ):
        rows = mixture.targets(label, first, part, classes, smoothing)

        value, gradient = entropy(jnp.asarray(case["out/logits"]), rows)
        close(value, case[f"out/{name}"], rtol=1e-5, name=name)
        key = "grad/logits" + name.removeprefix("loss").replace("plain", "_plain")
        close(gradient, case[key], rtol=1e-4, atol_of_max=1e-5, name=key)
        if name == "loss":
            of_weight = gradient.T @ mixed.reshape(len(mixed), -1)
            close(of_weight, case["grad/weight"], rtol=1e-4, atol_of_max=1e-5, name="weight")


def baseline_steps(case: Case):
    """Steps of the classifier from scratch on mixed examples, the last batch a short one."""
    meta, given = case.meta, case.under("param")
    classes, names = len(given["fc.bias"]), table(first=1)
    method = supervised.make(Dense(given["model.1.weight"].shape[0]), classes)

    @jax.jit
    def mix(views, label, partner, share):
        mixed = mixture.mix(views, views[partner], share)
        return mixed, mixture.targets(label, label[partner], share, classes, 0.0)

    def batch(i):
        label = jnp.asarray(case[f"in/y_{i}"], jnp.int32)
        partner, share = case[f"in/index_{i}"], jnp.float32(case["in/lam"][i])
        mixed, target = mix(jnp.asarray(case[f"in/x_{i}"]), label, partner, share)
        return {"views": as_views(mixed), "label": label, "target": target}

    take = Steps(meta, method, *start(method, batch(0), given, names))
    for i in range(len(case["out/loss"])):
        loss, output = take(batch(i))
        close(loss, case["out/loss"][i], rtol=1e-4, name=f"loss {i}")
        labels = batch(i)["label"]
        for k in (1, 5):
            share = 100 * TOP_K(output.features["logits"][:, 0], labels, k)
            close(share, case[f"out/acc{k}"][i], rtol=1e-5, name=f"top {k}")
    close_state(take.params, take.extra, case.under("out/final"), names, FINAL)


def _block_names(module: str) -> str:
    shortcut = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
    parts = [shortcut.get(part, part) for part in module.split("/")]
    return re.sub(r"^layer(\d+)_", r"layer\1.", ".".join(parts))


def model_imagenet(case: Case):
    """Encoder and head under the names of stage 1; both give directions."""
    given = case.under("param")
    names = {"conv1": "f.0", "bn1": "f.1", "layer": "f."}
    heads = {"linear_0": "g.0", "norm_0": "g.1", "linear_1": "g.3"}

    def rename(module):
        part, _, layer = module.partition("/")
        if part == "projector":
            return heads[layer]
        if layer in names:
            return names[layer]
        return re.sub(r"^layer(\d)", lambda m: f"f.{int(m[1]) + 3}", _block_names(layer))

    blocks = sorted(
        {tuple(map(int, k.split(".")[1:3])) for k in given if re.match(r"f\.\d+\.\d", k)}
    )
    stages = sorted({stage for stage, _ in blocks})
    backbone = ResNet(
        stage_sizes=tuple(sum(stage == s for s, _ in blocks) for stage in stages),
        block=Bottleneck,
        width=len(given["f.0.weight"]),
        stage_widths=tuple(len(given[f"f.{stage}.0.conv1.weight"]) for stage in stages),
    )
    widths = tuple(len(given[f"g.{i}.weight"]) for i in (0, 3))
    network = Siamese(backbone, Projector(widths, bias=False, last_bias=True))
    images = jnp.moveaxis(jnp.asarray(case["in/x"]), 1, -1)
    shapes = jax.eval_shape(lambda key: network.init(key, images, True), jax.random.key(0))
    tables = mapping.by_module(rename)
    variables = mapping.from_torch(given, shapes, tables)

    @jax.jit
    def both(variables):
        evaluated = network.apply(variables, images, False)
        return evaluated, network.apply(variables, images, True, mutable=["batch_stats"])

    evaluated, (seen, after) = both(variables)
    for kind, found in (("eval", evaluated), ("train", seen)):
        for name, stored in (("representation", "feature"), ("embedding", "out")):
            direction = jax.jit(l2_normalize)(getattr(found, name))
            close(direction, case[f"out/{kind}_{stored}"], **FORWARD, name=f"{kind} {name}")
    close_state({}, after, case.under("out/after_train"), tables, FORWARD)


class Blocks(nn.Module):
    """A network of residual blocks of either kind: (kind, blocks, width, stride) of each stage."""

    stem: int
    stages: tuple[tuple[type[BasicBlock], int, int, int], ...]
    classes: int

    @nn.compact
    def __call__(self, x, train):
        def norm(**options):
            return BatchNorm(use_running_average=not train, **options)

        x = nn.relu(norm(name="bn1")(Conv(self.stem, 7, 2, (3, 3), name="conv1")(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, (kind, blocks, width, stride) in enumerate(self.stages, start=1):
            for i in range(blocks):
                sizes = {"width": width, "inner": width, "stride": stride if i == 0 else 1}
                block = kind(**sizes, dilation=1, conv=Conv, norm=norm, name=f"layer{stage}_{i}")
                x = block(x)
        return Linear(self.classes, name="fc")(jnp.mean(x, (1, 2)))


def resnet_blocks(case: Case):
    """Blocks that begin with a ReLU, as the standard ones that end with it."""
    text, given = case.meta["layers"], case.under("param")
    kinds = {"Bottleneck": Bottleneck, "BasicBlock": BasicBlock}
    found = re.findall(r"layer\d: (?:(\d+) )?(\w+) (?:planes )?(\d+) s(\d)", text)
    stages = tuple((kinds[k], int(n or 1), int(w), int(s)) for n, k, w, s in found)
    network = Blocks(len(given["conv1.weight"]), stages, len(given["fc.bias"]))
    images, tables = jnp.moveaxis(jnp.asarray(case["in/x"]), 1, -1), mapping.by_module(_block_names)
    shapes = jax.eval_shape(lambda key: network.init(key, images, True), jax.random.key(0))
    variables = mapping.from_torch(given, shapes, tables)

    def weighted(params):
        values = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, after = network.apply(values, images, True, mutable=["batch_stats"])
        return jnp.sum(case["in/r"] * logits), (logits, after)

    grads, (logits, after) = jax.jit(jax.grad(weighted, has_aux=True))(variables["params"])
    evaluated = jax.jit(lambda v: network.apply(v, images, False))(variables)
    close(evaluated, case["out/eval_logits"], **FORWARD, name="eval")
    close(logits, case["out/train_logits"], **FORWARD, name="train")
    close_gradients(grads, case.under("grad"), tables, FINAL)
    close_state({}, after, case.under("out/after_train"), tables, FINAL)


KINDS = {
    **IPIRM,
    **dict.fromkeys(("supcon_basic", "supcon_two_views", "supcon_choose_pos"), supcon_case),
    "supcon_edge": supcon_edge,
    **dict.fromkeys(("mask_sigmoid", "mask_ident"), mask_case),
    "mask_gumbel": mask_gumbel,
    "env_build": env_build,
    "env_ties": env_ties,
    **dict.fromkeys(("step_full", "step_randaug", "step_edge"), step),
    "train_steps": train_steps,
    "mixup": mixup,
    "baseline_steps": baseline_steps,
    "model_imagenet": model_imagenet,
    "resnet_blocks": resnet_blocks,
}
