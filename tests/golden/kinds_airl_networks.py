"""Kinds of `airl` that hold layers and networks: norms, heads, residual networks."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import names_airl as table
import numpy as np
from case import Case, close

from jaxequi.interop import mapping
from jaxequi.methods._siamese import Siamese
from jaxequi.models.torchvision_resnet import BasicBlock, Bottleneck, ResNet
from jaxequi.nn.heads import Projector
from jaxequi.nn.norm import BatchNorm

FORWARD = {"rtol": 1e-4, "atol": 1e-5}
# The stored gradients were computed in f32. They are off those of f64 by up to 4e-5 of the largest
# entry of their tensor, which is 267 in one: an absolute 1e-4 is less than their own rounding.
GRADIENT = {"rtol": 1e-3, "atol": 1e-4, "atol_of_max": 1e-4}
EXACT = {"rtol": 1e-5, "atol": 1e-6}
UNLEARNT = 1e-5  # of the gradient of a bias that a norm takes off again


def in_f64(reproduction):
    """Run a reproduction with f64 arithmetic."""

    @functools.wraps(reproduction)
    def run(case):
        with jax.enable_x64(True):
            reproduction(case)

    return run


def f64(tree):
    """Arrays of a tree, those of f32 as f64 where JAX has it."""
    return jax.tree.map(
        lambda a: jnp.asarray(np.asarray(a, np.float64) if a.dtype == np.float32 else a), tree
    )


def images(x):
    """NCHW to NHWC."""
    return np.moveaxis(x, 1, -1)


def backbone(meta, dtype=jnp.float32) -> ResNet:
    """The reference's class with the stages that the case was made with."""
    width = meta.get("width", 1)
    return ResNet(
        stage_sizes=tuple(meta.get("blocks_per_stage") or meta["layers"]),
        block={"Bottleneck": Bottleneck, "BasicBlock": BasicBlock}[meta["block"]],
        width=meta.get("stem_width") or meta["stem"],
        stage_widths=tuple(meta.get("stage_planes") or meta["widths"]),
        width_per_group=int(64 * width),
        dilate=tuple(meta.get("replace_stride_with_dilation") or ()),
        dtype=dtype,
    )


def head(name: str, hidden: int, low: int) -> tuple[Projector, Projector | None]:
    """Projector and predictor of a head of revisitAIRL."""
    norm, bias = (None if name in ("cls", "moco") else BatchNorm), "mcv2p" not in name
    widths = (low,) if name == "cls" else (hidden, low)

    def one() -> Projector:
        return Projector(widths, norm, last_bias=bias)

    return one(), one() if name in ("mcv2p", "byol_pred") else None


def encoder(meta, predictor: bool, dtype=jnp.float32) -> tuple[Siamese, mapping.Table]:
    """An encoder of revisitAIRL, and the table of its names."""
    name = "byol_pred" if meta["MLP"] == "byol" and predictor else meta["MLP"]
    project, predict = (
        module and module.clone(dtype=dtype)
        for module in head(name, meta["hidden_dim"], meta["low_dim"])
    )
    names = table.moco(len(project.widths), project.norm is not None)
    return Siamese(backbone(meta, dtype), project, predict), names


def close_gradients(grads, expected, names, tolerance) -> None:
    """Compare gradients; of a bias before a norm the stored one is rounding, and ours is too."""
    ours = mapping.to_torch({"params": grads}, names)
    for name, theirs in expected.items():
        unlearnt = name.endswith("bias") and np.abs(theirs).max() < UNLEARNT
        close(
            ours[name],
            theirs,
            **({"rtol": 0, "atol": UNLEARNT} if unlearnt else tolerance),
            name=name,
        )


def close_state(variables, expected, names, tolerance) -> None:
    """Compare parameters and running statistics under torch's names."""
    ours = mapping.to_torch(variables, names)
    for name, theirs in expected.items():
        if not name.endswith("num_batches_tracked"):
            close(ours[name], theirs, **tolerance, name=name)


def variables_of(state, module, *inputs, names):
    """A torch state dict as variables of a module."""
    shapes = jax.eval_shape(lambda key: module.init(key, *inputs, True), jax.random.key(0))
    return mapping.from_torch(state, shapes, names)


def bn_flavours(case: Case) -> None:
    """Statistics, running statistics and gradients of two workers' shares of a batch."""
    workers, eps = case.meta["workers"], case.meta["bn_eps"]
    flavours = {
        "vanilla": BatchNorm(groups=workers),
        "torchsync": BatchNorm(),
        "plainsync": BatchNorm(unbiased=workers == 1),
    }
    for flavour, norm in flavours.items():
        norm = norm.clone(momentum=case.meta["bn_momentum"], epsilon=eps)
        for rank_dim in sorted({key.split("/")[1] for key in case.under("in")} | {"1d", "2d"}):
            _flavour(case, flavour, rank_dim, norm, workers)


def _flavour(case: Case, flavour: str, dim: str, norm: BatchNorm, workers: int) -> None:
    if f"in/{dim}/x_rank0" not in case:
        return
    given = case.under(f"param/{dim}")
    params = {"scale": given["weight"], "bias": given["bias"]}
    stats = {"mean": given["running_mean"], "var": given["running_var"]}

    def ranks(key):
        return [np.moveaxis(case[f"{key}_rank{r}"], 1, -1) for r in range(workers)]

    x, cot = ranks(f"in/{dim}/x"), ranks(f"in/{dim}/cot")
    stored, size = f"out/{flavour}/{dim}", len(x[0])

    @jax.jit
    def both(rows, cotangent):
        def forward(params, rows):
            variables = {"params": params, "batch_stats": stats}
            y, after = norm.apply(variables, rows, False, mutable=["batch_stats"])
            return y, after["batch_stats"]

        y, vjp, after = jax.vjp(forward, params, rows, has_aux=True)
        return y, after, *vjp(cotangent)

    def run(first):
        """Let the worker `first` be the one whose running statistics are kept."""
        order = [(first + i) % workers for i in range(workers)]
        return both(*(np.concatenate([part[r] for r in order]) for part in (x, cot)))

    for rank in range(workers):
        y, after, of_params, of_rows = run(rank)
        suffix = "" if flavour == "torchsync" else f"_rank{rank}"
        close(after["mean"], case[f"{stored}/running_mean{suffix}"], **EXACT, name="mean")
        close(after["var"], case[f"{stored}/running_var{suffix}"], **EXACT, name="var")
        if flavour == "torchsync":
            if rank == 0:
                close(np.moveaxis(y, -1, 1), case[f"{stored}/y_all"], **EXACT, name="y")
            continue
        close(np.moveaxis(y[:size], -1, 1), case[f"{stored}/y{suffix}"], **EXACT, name="y")
        grad = f"grad/{flavour}/{dim}"
        if f"{grad}/x{suffix}" in case:
            close(np.moveaxis(of_rows[:size], -1, 1), case[f"{grad}/x{suffix}"], **EXACT, name="x")
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        parts = [case.arrays.get(f"grad/{flavour}/{dim}/{theirs}_rank{r}") for r in range(workers)]
        if parts[0] is not None:
            close(of_params[ours], sum(parts), **EXACT, name=f"gradient of {theirs}")


def heads(case: Case) -> None:
    """Every head in training, then in evaluation with the statistics of that pass."""
    x, cot, meta = jnp.asarray(case["in/x"]), case["in/cot"], case.meta
    for name, layers in meta["heads"].items():
        project, predict = head(name, meta["hidden_dim"], meta["low_dim"])
        biases = [kind.endswith("bias=True)") for kind in layers if kind.startswith("Linear")]
        modules = [module for module in (project, predict) if module]
        assert len(biases) == sum(len(module.widths) for module in modules)
        net = Siamese(_Features(), project, predict)
        names = table.moco(len(project.widths), project.norm is not None)
        state = {f"fc.{k}": v for k, v in case.under(f"param/{name}").items()}
        variables = variables_of(state, net, x, names=names)
        stats = [k for k in variables if k != "params"]

        @jax.jit
        def train(x, net=net, variables=variables, stats=stats):
            def total(x):
                encoded, after = net.apply(variables, x, True, mutable=stats)
                return jnp.sum(encoded.prediction * cot), (encoded.prediction, after)

            return jax.grad(total, has_aux=True)(x)

        dx, (y, after) = train(x)
        close(y, case[f"out/{name}/train"], **EXACT, name=f"{name} train")
        close(dx, case[f"grad/{name}/x"], **EXACT, name=f"{name} gradient")
        after = {"params": variables["params"], **after}
        expected = {f"fc.{k}": v for k, v in case.under(f"out/{name}/after").items()}
        close_state(after, expected, names, EXACT)
        evaluated = jax.jit(lambda v, x, net=net: net.apply(v, x, False))(after, x).prediction
        close(evaluated, case[f"out/{name}/eval_after"], **EXACT, name=f"{name} eval")


class _Features(nn.Module):
    """The backbone of cases whose inputs are representations."""

    def __call__(self, x, train):
        return x


@in_f64
def resnet(case: Case) -> None:
    """A network in evaluation, then in training, with all gradients of a scalar.

    In f64, because statistics of a few pixels magnify what f32 rounds.
    """
    net, names = encoder(case.meta, case.meta["predictor"], jnp.float64)
    x = f64(images(case["in/x"]))
    variables = f64(variables_of(case.under("param"), net, x, names=names))

    def forward(variables, x, train):
        return net.apply(variables, x, train, mutable=["batch_stats", "intermediates"])

    seen, kept = jax.jit(forward, static_argnums=2)(variables, x, False)
    last = kept["intermediates"]["backbone"]
    last = last[f"layer{len(net.backbone.stage_sizes)}"][0]
    close(seen.prediction, case["out/eval_fc"], **FORWARD, name="eval fc")
    close(seen.representation, case["out/eval_gp"], **FORWARD, name="eval gp")
    close(np.moveaxis(last, -1, 1), case["out/eval_res5"], **FORWARD, name="eval res5")

    @jax.jit
    def train(params, x):
        def total(params, x):
            seen, after = forward({**variables, "params": params}, x, True)
            counts = jnp.arange(seen.representation.shape[-1])
            scalar = jnp.sum(seen.prediction**2) + 0.1 * jnp.sum(counts * seen.representation)
            return scalar, (seen, after["batch_stats"])

        return jax.grad(total, (0, 1), has_aux=True)(params, x)

    (grads, dx), (seen, stats) = train(variables["params"], x)
    close(seen.prediction, case["out/train_fc"], **FORWARD, name="train fc")
    close(seen.representation, case["out/train_gp"], **FORWARD, name="train gp")
    # The stored gradient of x, and it alone, is the sum of two equal backward passes: exactly twice
    # the derivative of the scalar whose derivatives by the parameters stand beside it.
    close(2 * np.moveaxis(dx, -1, 1), case["grad/x"], **GRADIENT, name="gradient of x")
    close_gradients(grads, case.under("grad/param"), names, GRADIENT)
    close_state({"batch_stats": stats}, case.under("out/after"), names, FORWARD)


NETWORKS = {"bn_flavours": bn_flavours, "heads": heads, "resnet": resnet}
