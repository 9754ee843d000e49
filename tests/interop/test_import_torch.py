"""Networks in and out of torch's names, and the program around them."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import sie as sie_config
from jaxequi import experiment, trained
from jaxequi.interop import export_torch, import_torch

ROOT = pathlib.Path(__file__).parent.parent.parent
# features of torchvision 0.28 with the weights of `drawn`, on the pictures of `pictures`
TORCHVISION = pathlib.Path(__file__).parent / "torchvision_features.npz"


PARAMETERS = {  # as torchvision's documentation counts them
    "resnet34": 21_797_672,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def filled(shapes, seed=0):
    """Some values for every leaf."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda s: random.uniform(0.1, 1, s.shape).astype(s.dtype), shapes)


def drawn(state):
    """Weights for a torchvision network, from its names and shapes alone."""
    values = {}
    for seed, name in enumerate(sorted(state)):
        random, shape = np.random.default_rng(seed), state[name].shape
        if name.endswith("num_batches_tracked"):
            values[name] = np.zeros((), np.int64)
        elif len(shape) > 1:
            values[name] = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        elif name.endswith(("bias", "mean")):
            values[name] = random.normal(0, 0.1, shape)
        else:
            values[name] = random.uniform(0.3, 0.7, shape)
    return {k: v.astype(np.int64 if v.ndim == 0 else np.float32) for k, v in values.items()}


def pictures():
    return np.random.default_rng(0).normal(size=(2, 43, 50, 3)).astype(np.float32)


@pytest.mark.parametrize("variant", ["sie", "only_equi", "simclr_augself", "vicreg_partinv"])
def test_a_method_comes_back_exactly(variant):
    config = sie_config.get_config(f"{variant},smoke")
    variables = filled(import_torch.shapes(config, 7))
    state = export_torch.state_dict(config.to_dict(), variables)
    file = export_torch.sie_checkpoint(state, config.to_dict(), 12)
    back, epoch = import_torch.state_of(file)
    assert epoch == 12
    found, whole = import_torch.sie_variables(back, config)
    assert whole
    np.testing.assert_equal(found, variables)


def test_a_backbone_comes_back_exactly():
    config = sie_config.get_config("sie,smoke")
    variables = filled(import_torch.shapes(config, 7))
    state = export_torch.backbone_state_dict(variables)
    assert "layer1.0.downsample.1.running_var" in state
    found, whole = import_torch.sie_variables(import_torch.state_of(state)[0], config)
    assert not whole
    np.testing.assert_equal(found["params"], {"backbone": variables["params"]["backbone"]})


def test_a_checkpoint_of_another_method_shows_the_difference():
    other = sie_config.get_config("sie,smoke")
    state = export_torch.state_dict(other.to_dict(), filled(import_torch.shapes(other, 7)))
    with pytest.raises(ValueError) as error:
        import_torch.sie_variables(state, sie_config.get_config("vicreg,smoke"))
    assert "- projector.0.weight (for params/projector/linear_0/kernel" in str(error.value)
    assert "+ projector_inv.0.weight" in str(error.value)
    assert "+ predictor.hypernet.net.0.weight" in str(error.value)


def test_what_is_no_state_dict_is_told():
    with pytest.raises(ValueError, match="it has epoch, args"):
        import_torch.state_of({"epoch": 3, "args": {}})


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_features_of_torchvision(architecture):
    config = import_torch.torchvision_config(architecture, 10)
    empty = jax.tree.map(
        lambda s: np.broadcast_to(np.float32(0), s.shape), import_torch.shapes(config, 0)
    )
    state = drawn(export_torch.state_dict(config.to_dict(), empty))
    variables, config = import_torch.torchvision_variables(state, architecture)
    np.testing.assert_equal(export_torch.state_dict(config.to_dict(), variables), state)
    backbone = experiment.make_backbone(config)
    alone = {name: tree["backbone"] for name, tree in variables.items()}
    features = jax.jit(lambda v, x: backbone.apply(v, x, False))(alone, pictures())
    with np.load(TORCHVISION) as stored:
        expected = stored[architecture]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("architecture", "count"), PARAMETERS.items())
def test_torchvision_networks_have_their_parameters(architecture, count):
    shapes = import_torch.shapes(import_torch.torchvision_config(architecture, 1000), 0)
    assert sum(s.size for s in jax.tree.leaves(shapes["params"])) == count


def test_a_network_without_optimizer_is_written_and_read(tmp_path):
    config = sie_config.get_config("sie,smoke")
    variables = filled(import_torch.shapes(config, 7))
    import_torch.write(tmp_path / "run", config, variables, 12)
    with pytest.raises(ValueError, match="already"):
        import_torch.write(tmp_path / "run", config, variables, 12)
    network = trained.load(tmp_path / "run")
    assert network.step == 12
    without_probe = {k: v for k, v in variables["params"].items() if k != "probe"}
    np.testing.assert_equal(network.params, without_probe)
    views = np.zeros((2, 1, 16, 16, 3), np.float32)
    encoded = network.encode(network.params, network.extra, views)
    assert encoded["embedding"].shape == (2, 1, 16)


def test_the_programs(tmp_path):
    pytest.importorskip("torch")
    from jaxequi.interop import files

    config = sie_config.get_config("sie,smoke")
    state = export_torch.state_dict(config.to_dict(), filled(import_torch.shapes(config, 7)))
    files.write_pth(tmp_path / "model.pth", export_torch.sie_checkpoint(state, config.to_dict(), 3))

    def run(program, *arguments):
        command = [sys.executable, "-m", f"jaxequi.interop.{program}", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    file = f"--file={tmp_path / 'model.pth'}"
    right = run("import_torch", file, "--config=configs/sie.py:sie,smoke")
    assert right.returncode == 0, right.stderr
    out = run("export_torch", tmp_path / "model", f"--file={tmp_path / 'again.pth'}")
    assert out.returncode == 0, out.stderr
    again = files.read_pth(tmp_path / "again.pth")
    np.testing.assert_equal(import_torch.state_of(again)[0], state)
