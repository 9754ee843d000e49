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


def of_torch(nn, network, order, classes):
    """Make the network of torch that torchvision's names describe, with one block a stage."""

    class Block(nn.Module):
        def __init__(self, widths, sizes, stride, shortcut):
            super().__init__()
            self.last = len(sizes)
            for i, size in enumerate(sizes):
                here = stride if i == self.last - 2 else 1
                conv = nn.Conv2d(*widths[i : i + 2], size, here, size // 2, bias=False)
                self.add_module(f"conv{i + 1}", conv)
                self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
            self.downsample = None
            if shortcut:
                conv = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)
                self.downsample = nn.Sequential(conv, nn.BatchNorm2d(widths[-1]))

        def forward(self, x):
            y = x
            for i in range(1, self.last + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = y.relu() if i < self.last else y
            return ((x if self.downsample is None else self.downsample(x)) + y).relu()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            into = network.width
            self.conv1 = nn.Conv2d(3, into, 7, 2, 3, bias=False)
            self.bn1, self.pool = nn.BatchNorm2d(into), nn.MaxPool2d(3, 2, 1)
            for stage, width in enumerate(network.widths):
                out, sizes = width * network.block.expansion, (3, 3)
                widths, stride = (into, width, out), 2 if stage else 1
                if network.block is Bottleneck:
                    widths, sizes = (into, width, width, out), (1, 3, 1)
                block = Block(widths, sizes, stride, stage > 0 or into != out)
                self.add_module(f"layer{stage + 1}", nn.Sequential(block))
                into = out
            self.fc = nn.Linear(into // order, classes)

        def forward(self, x):
            x = self.pool(self.bn1(self.conv1(x)).relu())
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(x.mean((2, 3)).reshape(len(x), -1, order).amax(2))

    return Net()


def test_torch_loads_it_strictly_and_computes_the_same(run):
    torch = pytest.importorskip("torch", reason="torch, up to 5 GB, is an extra")
    file = told(run, ".pth")
    made, _ = plain.expand(*networks.load(run)[1:])
    module = of_torch(torch.nn, made.network, made.group.order, 5).eval()
    module.load_state_dict(torch.load(file, weights_only=True), strict=True)
    x = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        logits = module(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
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
