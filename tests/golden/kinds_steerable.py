"""Reproductions of `golden/steerable`: escnn's layers, and equivision's ResNets built of them.

Arrays of the reference are NCHW and OIHW, pixels of a kernel flattened row by row; its coefficients
are one vector, pair of representations by pair. Those of D_N belong to couplings whose signs one
installation chose: `signs` reads them off the basis that each case holds.
"""

from __future__ import annotations

import ast
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from case import Case, close

from jaxequi.groups import kernels, planar, representations
from jaxequi.groups.planar import Group
from jaxequi.groups.representations import FieldType, Representation
from jaxequi.methods.supervised import Classifier
from jaxequi.models import gresnet
from jaxequi.models.steerable_resnet import SteerableResNet
from jaxequi.models.torchvision_resnet import BasicBlock, Bottleneck
from jaxequi.nn import steerable
from jaxequi.nn.norm import InnerBatchNorm
from jaxequi.nn.pool import field_max, max_pool
from jaxequi.nn.steerable import FilterSpace
from jaxequi.probes import layers

BASIS = "_basisexpansion.block_expansion_({pair}).sampled_basis"


def images(x):
    """[B, C, H, W] to [B, H, W, C]."""
    return np.moveaxis(x, 1, -1)


def back(x):
    """[B, H, W, C] to [B, C, H, W]."""
    return np.moveaxis(np.asarray(x), -1, 1)


def representation(group: Group, word: str) -> Representation:
    """`triv`, `reg`, `('irrep', (1,))`, `('quot', 4)`, and the longer words of `groups`."""
    if word in ("triv", "trivial"):
        return representations.trivial(group)
    if word in ("reg", "regular"):
        return representations.regular(group)
    if word.startswith("irrep "):
        return representations.irrep(group, *map(int, word[6:].split(",")))
    kind, which = ast.literal_eval(word)
    if kind == "irrep":
        return representations.irrep(group, *which)
    if not group.mirrors or group.rotations == 1:
        mirrors = group.mirrors and which == 2
        return representations.quotient(group, Group(1 if mirrors else which, mirrors))
    axis, turns = which
    return representations.quotient(group, Group(turns, axis is not None), axis or 0)


def fields(group: Group, words) -> FieldType:
    return FieldType(tuple((representation(group, word), 1) for word in words))


def signs(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """+1 or -1 of each element of a basis [B, d_out, d_in, k k] against the canonical one."""
    found = np.sign((ours * theirs).sum((1, 2, 3)))
    assert np.abs(theirs - found[:, None, None, None] * ours).max() < 1e-5
    return found


def weights_of(case: Case, vector, space: FilterSpace, prefix="", alias=None, basis=None):
    """A flat vector of the reference as [B, fields in, fields out] of each pair."""
    made, start = {}, 0
    for pair in steerable.pairs(space):
        count, fields_in, fields_out = pair.shape
        key = prefix + BASIS.format(pair=f"'{pair.rho_in.name}', '{pair.rho_out.name}'")
        stored = case[f"param/{(alias or {}).get(key, key)}"]
        part = vector[start : start + count * fields_in * fields_out]
        start += part.size
        sign = signs(pair.basis.filters, stored)
        part = part.reshape(fields_out, fields_in, count) * sign
        made[pair.name] = part.transpose(2, 1, 0).astype(np.float32)
    assert start == len(vector)
    return made


def vector_of(case: Case, weights, space: FilterSpace, prefix="", alias=None):
    """The inverse of `weights_of`."""
    parts = []
    for pair in steerable.pairs(space):
        key = prefix + BASIS.format(pair=f"'{pair.rho_in.name}', '{pair.rho_out.name}'")
        sign = signs(pair.basis.filters, case[f"param/{(alias or {}).get(key, key)}"])
        parts.append((np.asarray(weights[pair.name]).transpose(2, 1, 0) * sign).ravel())
    return np.concatenate(parts)


def groups(case: Case):
    tolerance = {"rtol": 0, "atol": 1e-6}
    for name, meta in case.meta["groups"].items():
        group, stored = planar.named(name), case.under(f"out/{name}")
        np.testing.assert_array_equal(group.product, stored["mul"])
        np.testing.assert_array_equal(group.inverse, stored["inv"])
        close(group.matrices, stored["base_action"], **tolerance, name=f"{name} matrices")
        regular = representations.regular(group)
        np.testing.assert_array_equal(regular.matrices, stored["regular"])
        close(regular.change_of_basis, stored["Q"], **tolerance, name=f"{name} change of basis")
        found = representations.irreps(group)
        assert [list(i) for i in found] == meta["irreps"]
        assert [representations.irrep(group, *i).name for i in found] == meta["irrep_names"]
        assert [list(i) for i in regular.irreps] == meta["regular_irreps"]
        for irrep in found:
            key = f"irrep/{'_'.join(map(str, irrep))}"
            matrices = representations.irrep_matrices(group, irrep)
            close(matrices, stored[key], **tolerance, name=f"{name} {irrep}")
        if "transform_type" in meta:
            kind = fields(group, meta["transform_type"])
            x = np.moveaxis(case[f"in/{name}/x"], 1, -1)
            moved = [representations.act(kind, g, x)[0] for g in range(group.order)]
            close(back(np.stack(moved)), stored["transformed"], **tolerance, name=f"{name} moved")


def basis(case: Case):
    group = planar.named(case.meta["group"])
    trivial, regular = representations.trivial(group), representations.regular(group)
    size = case.meta["kernel_size"]
    radii, widths = kernels.rings(size)
    close(radii, case.meta["rings"], rtol=1e-6)
    close(widths, case.meta["sigma"], rtol=1e-6)
    for rho_in, rho_out, part in ((trivial, regular, "tr"), (regular, regular, "rr")):
        stored, made = case.under(f"out/{part}"), kernels.basis(rho_in, rho_out, size)
        ours, theirs = made.filters, stored.get("sampled_basis")
        if theirs is None:
            ours, theirs = ours[:, :, :1], stored["sampled_basis_col0"][:, :, None]
        assert made.frequency.max() == case.meta["maximum_frequency"]
        np.testing.assert_array_equal(made.frequency, stored["freq"])
        close(radii[made.ring], stored["ring"], rtol=1e-6, name="ring")
        np.testing.assert_array_equal(made.in_irrep, stored["in_irrep_idx"])
        np.testing.assert_array_equal(made.out_irrep, stored["out_irrep_idx"])
        if group.mirrors and group.rotations > 1 and part == "rr":
            ours = ours * signs(ours, theirs)[:, None, None, None]
        close(ours, theirs, rtol=0, atol=2e-6, name=f"{part} basis")
        space = FilterSpace(FieldType(((rho_in, 1),)), FieldType(((rho_out, 1),)), size)
        scales = steerable.initial_scales(space)["weights"]
        close(scales, stored["he_std_single"], rtol=1e-6, name="scales")


def conv(case: Case):
    m, tolerance = case.meta, {"rtol": 1e-4, "atol": 1e-5}
    group = planar.named(m["group"])
    space = FilterSpace(
        fields(group, m["in_fields"]),
        fields(group, m["out_fields"]),
        m["kernel_size"],
        m["dilation"],
    )
    weights = weights_of(case, case["param/weights"], space)
    bias = case["param/bias"] if m["bias"] else None
    scales = steerable.initial_scales(space)
    spread = {
        p.name: np.broadcast_to(scales[p.name][:, None, None], p.shape)
        for p in steerable.pairs(space)
    }
    close(np.abs(vector_of(case, spread, space)), case["out/he_std"], rtol=1e-5, name="scales")

    @jax.jit
    def layer(x, cotangent, weights, bias):
        def output(x, weights, bias):
            geometry = {"strides": m["stride"], "padding": m["padding"]}
            return steerable.steerable_conv(x, weights, space, bias, **geometry)

        y, vjp = jax.vjp(output, x, weights, bias)
        expanded = None if bias is None else steerable.expand_bias(bias, space.type_out)
        return steerable.expand(weights, space), expanded, y, vjp(cotangent)

    filters, expanded, y, gradient = layer(
        images(case["in/x"]), images(case["in/cot"]), weights, bias
    )
    to_x, to_weights, to_bias = gradient
    close(filters.transpose(3, 2, 0, 1), case["out/filter"], **tolerance, name="filter")
    close(back(y), case["out/y"], **tolerance, name="y")
    close(back(to_x), case["grad/x"], **tolerance, name="gradient of x")
    found = vector_of(case, to_weights, space)
    close(found, case["grad/weights"], **tolerance, name="gradient of weights")
    if bias is not None:
        close(expanded, case["out/expanded_bias"], **tolerance, name="bias")
        close(to_bias, case["grad/bias"], **tolerance, name="gradient of bias")


def inner_batch_norm(case: Case):
    kind = fields(planar.named(case.meta["group"]), case.meta["fields"])
    norm = InnerBatchNorm(kind, momentum=case.meta["momentum"], epsilon=case.meta["eps"])
    stored = {n: k for k in case.under("param") for n in re.findall(r"^batch_norm_\[(\d+)\]", k)}

    def tree(prefix, **names):
        return {
            f"size_{n}": {
                ours: jnp.asarray(case[f"{prefix}/batch_norm_[{n}].{theirs}"])
                for ours, theirs in names.items()
            }
            for n in stored
        }

    params = tree("param", scale="weight", bias="bias")
    stats = tree("param", mean="running_mean", var="running_var")
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    x = images(case["in/x"])
    variables = {"params": params, "batch_stats": stats}
    y = jax.jit(lambda v, x: norm.apply(v, x, use_running_average=True))(variables, x)
    close(back(y), case["out/y_eval"], **tolerance, name="evaluation")

    def train(params, x):
        y, updated = norm.apply(
            {"params": params, "batch_stats": stats},
            x,
            use_running_average=False,
            mutable=["batch_stats"],
        )
        return y, updated["batch_stats"]

    @jax.jit
    def run(params, x, cotangent):
        y, vjp, after = jax.vjp(train, params, x, has_aux=True)
        return y, after, *vjp(cotangent)

    y, after, to_params, to_x = run(params, x, images(case["in/cot"]))
    close(back(y), case["out/y_train"], **tolerance, name="training")
    close(back(to_x), case["grad/x"], **tolerance, name="gradient of x")
    expected = (
        tree("grad", scale="weight", bias="bias"),
        tree("out/after", mean="running_mean", var="running_var"),
    )
    jax.tree.map(lambda a, b: close(a, b, **tolerance), (to_params, after), expected)


def pools(case: Case):
    group = planar.named(case.meta["group"])
    x = images(case["in/x"])
    kind = FieldType(((representations.regular(group), planar.fields(group, x.shape[-1])),))

    def head(x):
        return field_max(jnp.mean(max_pool(x, 3, 2, 1), (1, 2), keepdims=True), kind)

    @jax.jit
    def run(x, cotangent):
        y, vjp = jax.vjp(head, x)
        return max_pool(x, 3, 2, 1), field_max(x, kind), y, *vjp(cotangent)

    pooled, dense, y, to_x = run(x, images(case["in/cot"]))
    close(back(pooled), case["out/maxpool"], rtol=1e-6)
    close(back(dense), case["out/grouppool_dense"], rtol=1e-6)
    close(back(y), case["out/head"], rtol=1e-6, atol=1e-6)
    close(back(to_x), case["grad/x"], rtol=1e-6, atol=1e-6)


def group_pooling(case: Case):
    kind = fields(planar.named(case.meta["group"]), case.meta["fields"])
    pooled = jax.jit(field_max, static_argnums=1)(images(case["in/x"]), kind)
    close(back(pooled), case["out/y"], rtol=0)


def coupling_signs(case: Case):
    names = sorted({key.split("/")[1] for key in case.arrays})
    for name in names:
        group, stored = planar.named(name), case.under(f"out/{name}")
        for triple, sign in zip(stored["triples"], stored["sign"], strict=True):
            out, inner, j = (tuple(map(int, i)) for i in triple.reshape(3, 2))
            theirs = stored["cg/" + "-".join(f"{a}_{b}" for a, b in (out, inner, j))]
            ours = dict(kernels.couplings(group, out, inner))[j]
            theirs = theirs / np.linalg.norm(theirs)  # their length does not matter
            close(ours * sign, theirs, rtol=0, atol=1e-6, name=f"{name} {triple}")


def network_of(case: Case) -> Classifier:
    m = case.meta
    block = BasicBlock if m["block"] == "E2BasicBlock" else Bottleneck
    group = planar.named(m["group"])
    backbone = SteerableResNet(group, m["base_width"], tuple(m["layers"]), block)
    return Classifier(backbone, m["num_classes"])


def _modules(path: str) -> str:
    """`backbone/layer1_0/shortcut_conv` to `layer1.0.downsample.0`."""
    name = path.replace("backbone/", "").replace("classifier", "fc")
    name = re.sub(r"layer(\d+)_(\d+)", r"layer\1.\2", name)
    name = name.replace("shortcut_conv", "downsample.0").replace("shortcut_bn", "downsample.1")
    return name.replace("/", ".")


LEAVES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _space(group: Group, shape, size: int, lifting: bool) -> FilterSpace:
    rho_in = representations.trivial(group) if lifting else representations.regular(group)
    rho_out = representations.regular(group)
    return FilterSpace(FieldType(((rho_in, shape[1]),)), FieldType(((rho_out, shape[2]),)), size)


def _translated(case: Case, template, group: Group):
    """For each leaf of a tree: our path, their key, and the filter space of coefficients."""
    kinds = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(template):
        *modules, name = (p.key for p in path[1:])
        theirs = _modules("/".join(modules))
        if name == "weights":
            key = f"{theirs}.{BASIS}"
            lifting = theirs == "conv1"
            pair = f"'{representations.trivial(group).name if lifting else 'regular'}', 'regular'"
            key = key.format(pair=pair)
            taps = case[f"param/{case.meta['alias'].get(key, key)}"].shape[-1]
            space = _space(group, leaf.shape, round(taps**0.5), lifting)
            kinds[path] = f"{theirs}.weights", space
        elif name == "kernel":
            kinds[path] = "fc.weight", None
        elif theirs == "fc":
            kinds[path] = "fc.bias", None
        else:
            kinds[path] = f"{theirs}.batch_norm_[{group.order}].{LEAVES[name]}", None
    return kinds


def networks(case: Case):
    network, m = network_of(case), case.meta
    group, alias = network.backbone.group, m["alias"]
    template = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((2, 33, 33, 3)), False)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(template["params"])) == m["param_count"]
    kinds = _translated(case, template, group)

    def load(path, leaf):
        key, space = kinds[path]
        stored = case[f"param/{key}"]
        if space is not None:
            prefix = key.removesuffix("weights")
            (stored,) = weights_of(case, stored, space, prefix, alias).values()
        stored = stored.T if key == "fc.weight" else stored
        assert stored.shape == leaf.shape, key
        return stored

    variables = jax.tree_util.tree_map_with_path(load, template)
    tolerance = {"rtol": 1e-3, "atol": 1e-4}
    expand = jax.jit(steerable.expand, static_argnums=1)
    for key, expected in case.under("out").items():
        if key.endswith(".filter") or key == "stem_filter":
            name = "conv1.weights" if key == "stem_filter" else f"{key[:-7]}.weights"
            path = next(p for p, (k, _) in kinds.items() if k == name)
            weights = variables
            for part in path:
                weights = weights[part.key]
            filters = expand({"weights": weights}, kinds[path][1])
            filters = np.asarray(filters).transpose(3, 2, 0, 1)
            close(filters, expected, rtol=1e-4, atol=1e-5, name=key)

    def classify(x):
        return network.apply(variables, x, False)[1]

    # of the layers below, what the last block puts out
    kept = {f"backbone/layer{len(m['layers'])}_{m['layers'][-1] - 1}"}
    for size in m["sizes"]:
        x = images(case[f"in/x{size}"])
        moves = {"": x, "_rot90": np.rot90(x, 1, (1, 2)), "_hflip": x[:, :, ::-1]}
        moves = {s: v for s, v in moves.items() if f"out/logits{size}{s}" in case}
        batch = np.concatenate(list(moves.values()))
        mapped, logits = layers.recorder(classify, batch.shape, kept.__contains__).run(batch)
        for suffix, part in zip(moves, np.split(np.asarray(logits), len(moves))):
            name = f"logits{size}{suffix}"
            close(part, case[f"out/{name}"], **tolerance, name=name)
        if f"out/features{size}" in case:
            first = np.asarray(mapped)[: len(x)]
            close(back(first), case[f"out/features{size}"], **tolerance, name="map")
            pooled = jax.jit(gresnet.pooled, static_argnums=(1, 2))(first, group, "coset_last")
            close(pooled, case[f"out/pooled{size}"], **tolerance, name="pooled")

    if "in/train_x" in case:
        x, y = images(case["in/train_x"]), case["in/train_y"].astype(np.int32)

        def loss(params):
            collections = {"params": params, "batch_stats": variables["batch_stats"]}
            (_, logits), updated = network.apply(collections, x, True, mutable=["batch_stats"])
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return jnp.mean(entropy), (logits, updated)

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, (logits, updated)), gradient = step(variables["params"])
        close(logits, case["out/train_logits"], **tolerance, name="train logits")
        close(value, case["out/train_loss"], **tolerance, name="loss")
        found = {"params": gradient, **updated}
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            key, space = kinds[path]
            where = f"grad/{key}" if path[0].key == "params" else f"out/after/{key}"
            if where not in case:
                continue
            if space is not None:
                leaf = vector_of(case, {"weights": leaf}, space, key.removesuffix("weights"), alias)
            leaf = np.asarray(leaf).T if key == "fc.weight" else np.asarray(leaf)
            close(leaf, case[where], **tolerance, name=where)


KINDS = {
    "groups": groups,
    "basis": basis,
    "conv": conv,
    "innerbn": inner_batch_norm,
    "pools_D4": pools,
    "grouppool_C4_mixed": group_pooling,
    "net": networks,
    "dn_coupling_signs": coupling_signs,
}
