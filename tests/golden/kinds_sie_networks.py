"""Kinds of SIE cases that hold a whole network: the backbones."""

from __future__ import annotations

import ast
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from case import Case, close
from flax import traverse_util

from jaxequi.interop import mapping
from jaxequi.interop.formats.sie import BACKBONE
from jaxequi.models import resnet

_NAMES = {"bottleneck": "resnet50", "splitpathways": "resnet_18_splitpathways"}
_ARGUMENTS = {"widen_end": "end_factor"}  # theirs -> ours, where they differ


def _network(case: Case):
    """The module that a case was made with; the blocks of a stage are counted in its parameters."""
    name = _NAMES.get(case.meta["kind"], case.meta["kind"])
    given = {k: ast.literal_eval(str(v)) for k, v in case.meta["kwargs"].items()}
    zero = given.pop("zero_init_residual", False)
    model = resnet.make(name, width=64 // case.meta["width_divisor"], zero_init_residual=zero)
    if not isinstance(model, resnet.ResNet):
        return model
    blocks = {tuple(k.split(".")[:2]) for k in case.under("param") if k.startswith("layer")}
    sizes = Counter(stage for stage, _ in blocks)
    return model.clone(
        stage_sizes=tuple(sizes[stage] for stage in sorted(sizes)),
        **{_ARGUMENTS.get(k, k): v for k, v in given.items()},
    )


def _resnet(case: Case) -> None:
    x = jnp.asarray(case["in/x"].transpose(0, 2, 3, 1))
    model = _network(case)

    def init(key):
        return model.init(key, x, train=False)

    def scales(key):
        """Of the norms alone: what nobody asks for is not drawn."""
        leaves = traverse_util.flatten_dict(init(key)["params"])
        return {path: leaf for path, leaf in leaves.items() if path[-1] == "scale"}

    key = jax.random.key(0)
    start, drawn = jax.eval_shape(init, key), traverse_util.unflatten_dict(jax.jit(scales)(key))
    at_init = mapping.to_torch({"params": drawn}, BACKBONE)
    for name, (mean, std) in case.meta.get("last_bn_scale_at_init", {}).items():
        close([at_init[name].mean(), at_init[name].std()], [mean, std], rtol=0, name=name)

    variables = mapping.from_torch(case.under("param"), start, BACKBONE)
    weight = jnp.asarray(case["in/w"])

    @jax.jit
    def train(params, x):
        def loss(params, x):
            features, new = model.apply(
                {**variables, "params": params},
                x,
                train=True,
                mutable=["batch_stats", "intermediates"],
            )
            return jnp.sum(features * weight), (features, new)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    (grads, dx), (features, new) = train(variables["params"], x)
    maps = {
        f"train_{'maxpool' if k == 'stem' else k}": np.transpose(v[0], (0, 3, 1, 2))
        for k, v in new.get("intermediates", {}).items()
        if k in ("stem", "layer1", "layer2", "layer3", "layer4")
    }
    outputs = {"train_features": features, **maps}
    tolerance = {"rtol": 1e-3, "atol_of_max": 1e-4}
    for name, expected in case.under("out").items():
        if name.startswith("train_"):
            close(outputs[name], expected, **tolerance, name=name)
    close(np.transpose(dx, (0, 3, 1, 2)), case["grad/x"], **tolerance, name="grad/x")

    grads = mapping.to_torch({"params": grads}, BACKBONE)
    for name, expected in case.under("grad/param").items():
        close(grads[name], expected, **tolerance, name=f"grad/param/{name}")

    after = {"params": variables["params"], "batch_stats": new["batch_stats"]}
    buffers = mapping.to_torch(after, BACKBONE)
    for name, expected in case.under("out/buffer_after").items():
        if not name.endswith("num_batches_tracked"):
            close(buffers[name], expected, **tolerance, name=name)

    evaluated = jax.jit(lambda x: model.apply(after, x, train=False))(x)
    close(evaluated, case["out/eval_features"], rtol=1e-5, atol_of_max=1e-5, name="eval")


NETWORKS = {"resnet": _resnet}
