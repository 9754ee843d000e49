"""Plain ResNets as ONNX: the only place that imports `onnx`, and `onnxruntime` if it is there.

Convolution, norm, ReLU, maximum and mean, a linear layer: operators that every runtime has.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from jaxequi.errors import Refusal
from jaxequi.interop import files
from jaxequi.interop.plain import Plain, State

OPSET = 17  # before axes of reductions became inputs


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise Refusal('files of ONNX need onnx: pip install -e ".[onnx]"') from error
    return onnx


class _Graph:
    """Nodes, one behind the other, and the arrays they read."""

    def __init__(self, helper: Any, state: State, epsilon: float):
        self.nodes: list[Any] = []
        self.used: dict[str, np.ndarray] = {}
        self._helper, self._state, self._epsilon = helper, state, epsilon

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and name what it puts out."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def array(self, name: str, value: Any = None) -> str:
        """An array of the state dict, or a new one."""
        self.used[name] = np.asarray(self._state[name] if value is None else value)
        return name

    def conv(self, x: str, name: str, norm: str, stride: int) -> str:
        """A convolution that keeps the size, but for its stride, and its norm."""
        size = self._state[f"{name}.weight"].shape[-1]
        ends = [size // 2] * 4
        weight = self.array(f"{name}.weight")
        x = self.add("Conv", x, weight, strides=[stride] * 2, pads=ends, kernel_shape=[size] * 2)
        parts = [f"{norm}.{p}" for p in ("weight", "bias", "running_mean", "running_var")]
        return self.add("BatchNormalization", x, *map(self.array, parts), epsilon=self._epsilon)


def write(file: str | pathlib.Path, plain: Plain, state: State) -> None:
    """Write a model `images` f32[N, 3, H, W], normalised, to `logits` f32[N, K]; N, H, W are free.

    Raises:
      ValueError: onnx is not installed, or the file cannot be written.
    """
    onnx, order = _onnx(), plain.group.order
    graph = _Graph(onnx.helper, state, plain.epsilon)
    x = graph.add("Relu", graph.conv("images", "conv1", "bn1", 2))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, blocks in enumerate(plain.network.stage_sizes):
        for block in range(blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            layers = [n for n in ("conv1", "conv2", "conv3") if f"{name}.{n}.weight" in state]
            strided = "conv2" if len(layers) == 3 else "conv1"
            y = x
            for layer in layers:
                norm = f"{name}.{layer.replace('conv', 'bn')}"
                y = graph.conv(y, f"{name}.{layer}", norm, stride if layer == strided else 1)
                if layer != layers[-1]:
                    y = graph.add("Relu", y)
            if f"{name}.downsample.0.weight" in state:
                x = graph.conv(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = graph.add("Relu", graph.add("Add", x, y))
    x = graph.add("ReduceMean", x, axes=[2, 3], keepdims=0)
    fields = plain.network.features // order
    shape = graph.array("fields", np.array([-1, fields, order], np.int64))
    x = graph.add("ReduceMax", graph.add("Reshape", x, shape), axes=[2], keepdims=0)
    weight, bias = graph.array("fc.weight"), graph.array("fc.bias")
    graph.nodes.append(onnx.helper.make_node("Gemm", [x, weight, bias], ["logits"], "fc", transB=1))
    numbers = onnx.TensorProto.FLOAT
    value = onnx.helper.make_tensor_value_info
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "plain_resnet",
            [value("images", numbers, ["N", 3, "H", "W"])],
            [value("logits", numbers, ["N", len(state["fc.bias"])])],
            [onnx.numpy_helper.from_array(a, name) for name, a in graph.used.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="jaxequi",
    )
    onnx.checker.check_model(model)
    with files.appearing(file) as part:
        part.write_bytes(model.SerializeToString())


def run(file: str | pathlib.Path, images: np.ndarray) -> tuple[np.ndarray, str]:
    """Compute a model's logits of f32[N, H, W, 3] by onnxruntime, or else onnx's own evaluator.

    Returns:
      f32[N, K], and what computed it.
    """
    inputs = {"images": np.ascontiguousarray(np.moveaxis(images, -1, 1))}
    try:
        import onnxruntime
    except ImportError:
        model = _onnx().load(str(file))
        _onnx().checker.check_model(model)
        evaluator = _onnx().reference.ReferenceEvaluator(model)
        return evaluator.run(["logits"], inputs)[0], "onnx's reference evaluator"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["logits"], inputs)[0], f"onnxruntime {onnxruntime.__version__}"
