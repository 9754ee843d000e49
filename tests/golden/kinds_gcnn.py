"""Reproductions of `golden/gcnn`: sepgroupy's layers, and the networks and protocols built on them.

Arrays of the reference are NCHW, or N C G HW with the elements of D4 in the order turn, then flip;
`images` and `maps` bring them into ours, `to_maps` takes feature maps back.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from case import Case, close

from jaxequi.groups import planar
from jaxequi.groups.planar import Group, cyclic, dihedral
from jaxequi.nn import gconv, pool
from jaxequi.nn.norm import BatchNorm


def group_of(name: str) -> Group:
    """The group in a class name: P4M, P4, else none."""
    return dihedral(4) if "P4M" in name else cyclic(4) if "P4" in name else cyclic(1)


def images(x):
    """[B, C, H, W] to [B, H, W, C]."""
    return np.moveaxis(x, 1, -1)


def maps(x, group: Group):
    """[B, C, G, H, W] to [B, H, W, C G]."""
    x = np.moveaxis(x[:, :, np.argsort(planar.turn_then_flip(group))], (1, 2), (-2, -1))
    return x.reshape(*x.shape[:-2], -1)


def to_maps(x, group: Group):
    """[B, H, W, C G] to [B, C, G, H, W]."""
    x = np.asarray(x).reshape(*x.shape[:-1], -1, group.order)
    return np.moveaxis(x, (-2, -1), (1, 2))[:, :, planar.turn_then_flip(group)]


def kernel(w, group: Group):
    """[O, I, T, k, k] to [k, k, T, I, O]."""
    w = w[:, :, np.argsort(planar.turn_then_flip(group))] if w.shape[2] > 1 else w
    return np.transpose(w, (3, 4, 2, 1, 0))


def to_kernel(w, group: Group):
    """[k, k, T, I, O] to [O, I, T, k, k]."""
    w = np.transpose(w, (4, 3, 2, 0, 1))
    return w[:, :, planar.turn_then_flip(group)] if w.shape[2] > 1 else w


def conv(case: Case):
    group, order = group_of(case.meta["cls"]), planar.turn_then_flip(group_of(case.meta["cls"]))
    separable, lifting = "param/pointwise_weight" in case, case["in/x"].ndim == 4
    geometry = {"strides": case.meta["stride"], "padding": case.meta["padding"]}
    tolerance = {"rtol": 1e-4, "atol": 2e-5}
    x = images(case["in/x"]) if lifting else maps(case["in/x"], group)
    params = case.under("param")
    bias = params.pop("bias", None)
    # the depthwise weights of the `g` form come without a slice axis
    axes = {name: w[:, :, None] if w.ndim == 4 else w for name, w in params.items()}
    weights = {name: kernel(w, group) for name, w in axes.items()}

    def layer(x, weights, bias):
        if separable:
            depthwise, pointwise = weights["depthwise_weight"], weights["pointwise_weight"]
            return gconv.separable_group_conv(x, depthwise, pointwise, group, bias, **geometry)
        return gconv.group_conv(x, weights["weight"], group, bias, **geometry)

    full = (
        weights["depthwise_weight"] * weights["pointwise_weight"]
        if separable
        else weights["weight"]
    )
    bank = np.asarray(gconv.filter_bank(jnp.asarray(full), group))
    k, slices = bank.shape[0], 1 if lifting else group.order
    bank = bank.reshape(k, k, -1, slices, bank.shape[-1] // group.order, group.order)
    bank = np.transpose(bank, (4, 5, 2, 3, 0, 1))[:, order]
    bank = bank if lifting else bank[:, :, :, order]
    close(bank, case["out/filter_bank"], rtol=0, name="filter bank", atol=1e-6)

    y, vjp = jax.vjp(layer, jnp.asarray(x), weights, bias)
    close(to_maps(y, group), case["out/y"], **tolerance, name="y")
    to_x, to_weights, to_bias = vjp(jnp.asarray(maps(case["in/ct"], group)))
    to_x = np.moveaxis(to_x, -1, 1) if lifting else to_maps(to_x, group)
    close(to_x, case["grad/x"], **tolerance, name="gradient of x")
    for name, gradient in to_weights.items():
        expected = case[f"grad/{name}"]
        close(to_kernel(gradient, group).reshape(expected.shape), expected, **tolerance, name=name)
    if bias is not None:
        close(to_bias, case["grad/bias"], **tolerance, name="gradient of bias")

    if "out/equiv_err_mean_max" in case:
        act = planar.act if lifting else planar.act_on_field
        errors = []
        for element in order[1:]:
            moved = layer(jnp.asarray(act(group, element, x)), weights, bias)
            error = np.abs(moved - planar.act_on_field(group, element, np.asarray(y)))
            errors.append((error.mean(), error.max()))
        if case.meta["exact"]:
            assert np.max(errors) < 2e-5
        else:
            # on a grid that the stride misses only a transposition is still exact
            expected = case["out/equiv_err_mean_max"]
            close(errors, expected, rtol=1e-3, atol=2e-5, name="equivariance error")
            assert np.max(errors) > 0.1


def pooling(case: Case):
    coset = case["in/x"].ndim > case["out/y"].ndim
    group = cyclic(4) if case["in/x"].shape[2] == 4 else dihedral(4)
    x, tolerance = maps(case["in/x"], group), {"rtol": 1e-6, "atol": 1e-6}

    def layer(x):
        if coset:
            return pool.coset_max(x, group)
        m = case.meta["kwargs"]
        geometry = {"strides": m.get("stride"), "padding": m.get("padding", 0)}
        return pool.max_pool(x, m["kernel_size"], **geometry, ceil_mode=m.get("ceil_mode", False))

    y, vjp = jax.vjp(layer, jnp.asarray(x))
    (to_x,) = vjp(jnp.asarray(images(case["in/ct"]) if coset else maps(case["in/ct"], group)))
    close(np.moveaxis(y, -1, 1) if coset else to_maps(y, group), case["out/y"], **tolerance)
    close(to_maps(to_x, group), case["grad/x"], **tolerance, name="gradient of x")
    if "out/equiv_err_mean" in case:
        errors = [
            np.abs(
                layer(jnp.asarray(planar.act_on_field(group, r, x)))
                - planar.act_on_field(group, r, np.asarray(y))
            ).mean()
            for r in (1, 2, 3)
        ]
        close(errors, case["out/equiv_err_mean"], rtol=1e-4, atol=1e-6, name="equivariance error")


def batch_norm(case: Case):
    group = cyclic(4) if case["in/x"].shape[2] == 4 else dihedral(4)
    norm = BatchNorm(field_size=group.order)
    params = {"scale": case["param/weight"], "bias": case["param/bias"]}
    stats = {"mean": case["param/running_mean"], "var": case["param/running_var"]}
    x, tolerance = jnp.asarray(maps(case["in/x"], group)), {"rtol": 1e-4, "atol": 1e-5}

    y = norm.apply({"params": params, "batch_stats": stats}, x, use_running_average=True)
    close(to_maps(y, group), case["out/y_eval"], **tolerance, name="evaluation")

    def train(params, x):
        y, updated = norm.apply(
            {"params": params, "batch_stats": stats},
            x,
            use_running_average=False,
            mutable=["batch_stats"],
        )
        return y, updated["batch_stats"]

    y, vjp, after = jax.vjp(train, params, x, has_aux=True)
    to_params, to_x = vjp(jnp.asarray(maps(case["in/ct"], group)))
    close(to_maps(y, group), case["out/y_train"], **tolerance, name="training")
    close(to_maps(to_x, group), case["grad/x"], **tolerance, name="gradient of x")
    close(to_params["scale"], case["grad/weight"], **tolerance, name="gradient of scale")
    close(to_params["bias"], case["grad/bias"], **tolerance, name="gradient of bias")
    close(after["mean"], case["out/running_mean_after"], **tolerance, name="running mean")
    close(after["var"], case["out/running_var_after"], **tolerance, name="running variance")


KINDS = {"conv": conv, "pool": pooling, "bn3d": batch_norm}
