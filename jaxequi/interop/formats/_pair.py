"""What files of MoCo, BYOL and SimSiam share: heads by their place, a pair of encoders, a queue."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import ml_collections
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import Network, State, _resnet, check
from jaxequi.interop.mapping import SAME, Layout, Table
from jaxequi.nn import heads
from jaxequi.types import OWN, PyTree

HEADS = "online"  # ours, in params: the heads beside the method
POINTER = Layout(lambda a: np.reshape(a, ()), lambda a: np.reshape(a, (1,)).astype(np.int64))
TRANSPOSED = Layout(np.transpose, np.transpose)


def place(layer: str, norm: bool) -> int:
    """Where a layer stands in a Sequential of Linear, BatchNorm if there is a `norm`, and ReLU.

    "linear_1" is the fourth module, 3, with norms and the third, 2, without; "norm_1" follows it.
    """
    kind, number = layer.split("_")
    return (3 if norm else 2) * int(number) + (kind == "norm")


def table(
    rename: Callable[[str], str],
    online: str,
    target: str = "",
    queue: Layout = SAME,
    classifier: str = "",
) -> Table:
    """Make the table of a network and, if it has them, of its target network and its queue.

    Args:
      rename: a module's path in one network, "projector/linear_1" -> theirs.
      online, target: the prefixes of the two.
      queue: layout of the keys f32[K, D].
      classifier: theirs of the linear layer that learns beside the method on representations.
    """
    whole = mapping.by_module(lambda module: f"{online}.{rename(module)}")
    slow = mapping.by_module(lambda module: f"{target}.{rename(module)}")
    beside = mapping.by_module(lambda _: classifier)

    def look_up(path: str) -> tuple[str, Layout]:
        if path == f"{OWN}/queue":
            return "queue", queue
        if path == f"{OWN}/pointer":
            return "queue_ptr", POINTER
        if path.startswith(f"{OWN}/target/"):
            return slow(path.removeprefix(f"{OWN}/target/"))
        if path.startswith(f"params/{HEADS}/"):
            return beside(path)
        return whole(path)

    return look_up


def backbone(module: str) -> str:
    """ "backbone/layer1_0/conv1" -> "layer1.0.conv1"."""
    return _resnet.rename(module.removeprefix("backbone/"))


def is_method(config: ml_collections.ConfigDict, *methods: str) -> bool:
    """Whether this is one of these methods over one of torchvision's ResNets."""
    over = config.backbone.name == "torchvision_resnet"
    return over and config.method is not None and config.method.name in methods


def widths(config: ml_collections.ConfigDict, part: str, default: str) -> tuple[int, ...]:
    """The widths of a head of a config."""
    return heads.widths(config.method.get(part, default))


def architecture(config: ml_collections.ConfigDict) -> str:
    """Name torchvision's network that is the backbone.

    Raises:
      ValueError: it is another, with widths of its own.
    """
    name = config.backbone.get("architecture", "resnet50")
    width, stages = config.backbone.get("width", 64), config.backbone.get("stage_widths", ())
    if width != 64 or stages:
        raise Refusal(
            f"torchvision's {name} has width 64, and this run has width={width}"
            f"{f', stage_widths={tuple(stages)}' if stages else ''}; the original has no such "
            "backbone"
        )
    return name


def read(
    state: State,
    config: ml_collections.ConfigDict,
    native: bool,
    table: Callable[[ml_collections.ConfigDict], Table],
    num_classes: int = 0,
) -> Network:
    """Read a state dict of a whole method.

    Args:
      native: what the format says of the config.
      table: of the config.
      num_classes: of the classifier beside the method; 0 for none.
    """
    check(native, config)
    config.online = {
        "features": ("representation",) if num_classes else (),
        "relation": None,
        "every_part": False,
        "whole_parts": False,
    }
    left_out = mapping.passed_over(state, mapping.COUNTERS)
    template = networks.shapes(config, num_classes)
    return Network(mapping.from_torch(state, template, table(config)), config, left_out)


def without_heads(variables: PyTree, kept: str = "") -> tuple[PyTree, tuple[str, ...]]:
    """Leave out the heads that learn beside a method, but for the one that is `kept`."""
    beside = variables["params"].get(HEADS, {})
    params = {name: tree for name, tree in variables["params"].items() if name != HEADS}
    if kept in beside:
        params[HEADS] = {kept: beside[kept]}
    others = sorted(name for name in beside if name != kept)
    line = f"{', '.join(others)}: the original has no such heads beside the method"
    return {**variables, "params": params}, (line,) if others else ()


def parameters(state: Mapping[str, np.ndarray], prefix: str = "") -> list[str]:
    """Names of what torch counts among the parameters: no statistics, no queue."""
    buffers = re.compile(r"(.*\.)?(running_mean|running_var|num_batches_tracked|queue|queue_ptr)")
    return [k for k in state if k.startswith(prefix) and not buffers.fullmatch(k)]
