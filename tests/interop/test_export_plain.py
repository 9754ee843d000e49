"""Networks over a group for use elsewhere: every file computes what the run does."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from configs import equivision
from jaxequi.errors import Refusal
from jaxequi.interop import export_plain, files, networks, plain
from jaxequi.models.torchvision_resnet import BasicBlock, Bottleneck

SIZE = 33


@pytest.fixture(params=["d4", "c3 bottlenecks"])
def run(request, tmp_path, short):
    """A run of a drawn network, and its export's arguments."""
    group, _, blocks = request.param.partition(" ")
    short(Bottleneck if blocks else BasicBlock)
    config = equivision.get_config("c8resnet18")
    config.backbone.architecture, config.backbone.width = f"{group}resnet18", 1
    config = config.copy_and_resolve_references()
    random = np.random.default_rng(0)

    def draw(path, leaf):
        low = 0.5 if path[-1].key in ("scale", "var") else -0.5
        return random.uniform(low, 1, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, networks.shapes(config, 5))
    networks.save(tmp_path / "run", config, variables, 7)
    return tmp_path / "run"


def told(run, ending):
    """Export, which loads and compares; return the file."""
    file = run.parent / f"new/model{ending}"
    text = export_plain.export(run, file, SIZE)
    assert f"{file}: {run}, step 7, " in text
    assert "its logits are those of the run to" in text
    return file


def test_safetensors(run):
    file = told(run, ".safetensors")
    state, about = files.read_safetensors(file)
    bottlenecks = "layer1.0.conv3.weight" in state
    order = 3 if bottlenecks else 8
    assert about == {"order": str(order), "epsilon": "1e-05", "format": "pt"}
    assert state["conv1.weight"].shape == (order, 3, 7, 7)
    assert state["fc.weight"].shape == (5, 32 if bottlenecks else 8)
    assert state["bn1.num_batches_tracked"].dtype == np.int64
    try:
        from safetensors.numpy import load_file
    except ImportError:
        return  # the format is pinned by what is compared above and refused below
    np.testing.assert_equal(load_file(file), state)


def test_onnx(run):
    pytest.importorskip("onnx", reason="onnx is an extra")
    told(run, ".onnx")


def test_stablehlo(run):
    pytest.importorskip("flatbuffers", reason="jax.export writes by flatbuffers, an extra")
    file = told(run, ".stablehlo")
    state, _ = files.read_safetensors(file.with_suffix(".safetensors"))
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    x = np.random.default_rng(1).normal(size=(3, SIZE, SIZE, 3)).astype(np.float32)
    made, expected = plain.expand(*networks.load(run)[1:])
    assert set(expected) - set(state) == {n for n in expected if n.endswith("tracked")}
    np.testing.assert_allclose(
        program.call(state, x), plain.logits(made, expected, x), rtol=1e-4, atol=1e-5
    )


def test_torch_computes_the_same(run):
    torch = pytest.importorskip("torch", reason="torch, up to 5 GB, is an extra")
    file = told(run, ".pth")
    state = {n: torch.from_numpy(a) for n, a in files.read_pth(file).items()}
    functional = torch.nn.functional

    def conv(x, name, norm, stride):
        weight = state[f"{name}.weight"]
        x = functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2)
        parts = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(state[f"{norm}.{p}"] for p in parts))

    x = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    h = conv(torch.from_numpy(np.moveaxis(x, -1, 1).copy()), "conv1", "bn1", 2).relu()
    h = functional.max_pool2d(h, 3, 2, 1)
    for stage in range(1, 5):
        name, stride = f"layer{stage}.0", 2 if stage > 1 else 1
        last = 3 if f"{name}.conv3.weight" in state else 2
        y = h
        for i in range(1, last + 1):
            y = conv(y, f"{name}.conv{i}", f"{name}.bn{i}", stride if i == last - 1 else 1)
            y = y.relu() if i < last else y
        if f"{name}.downsample.0.weight" in state:
            h = conv(h, f"{name}.downsample.0", f"{name}.downsample.1", stride)
        h = (h + y).relu()
    made, _ = plain.expand(*networks.load(run)[1:])
    fields = h.mean((2, 3)).reshape(2, -1, made.group.order).amax(2)
    logits = fields @ state["fc.weight"].T + state["fc.bias"]
    expected = plain.logits(made, files.read_pth(file), x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_refusals(tmp_path, filled, short):
    with pytest.raises(Refusal, match=r"unknown ending '.pt'.*Did you mean '.pth'"):
        export_plain.export(tmp_path, "model.pt")
    config = equivision.get_config("c4resnet18")
    config.backbone.width, config.backbone.fit = 1, True
    variables = filled(networks.shapes(config, 3))
    with pytest.raises(Refusal, match="fit and antialias are off"):
        plain.expand(config, variables)
    config.backbone = {"name": "gresnet", "architecture": "p4resnet18", "width": 2}
    with pytest.raises(Refusal, match="backbone 'gresnet', method 'supervised': what is written"):
        plain.expand(config, variables)


def test_damaged_safetensors_are_refused(tmp_path):
    file = tmp_path / "a.safetensors"
    files.write_safetensors(file, {"a": np.arange(6.0), "b": np.zeros((), np.int64)}, {})
    whole = file.read_bytes()
    state, about = files.read_safetensors(file)
    np.testing.assert_equal(state, {"a": np.arange(6.0), "b": np.zeros((), np.int64)})
    assert about == {}
    claims = whole.replace(b'"shape": [6]', b'"shape": [9]')
    places = whole.replace(b"[0, 48]", b"[8, 56]")
    for content in (whole[:-1], whole[:20], b"", b"\xff" * 64, claims, places[:-9]):
        file.write_bytes(content)
        with pytest.raises(Refusal, match=r"a.safetensors is no file of safetensors, or is cut"):
            files.read_safetensors(file)
    with pytest.raises(Refusal, match="c is of complex128; safetensors here holds"):
        files.write_safetensors(tmp_path / "c", {"c": np.zeros(1, complex)}, {})
