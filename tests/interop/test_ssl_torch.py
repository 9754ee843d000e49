"""Files of MoCo, SimSiam, BYOL and MAE by modules of torch: loaded strictly, equal features."""

from __future__ import annotations

import importlib
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch, up to 5 GB, is an extra")
resnets = pytest.importorskip(
    "torchvision.models", reason="torchvision goes with torch, up to 5 GB"
)

from torch import nn

from jaxequi.experiment import trained
from jaxequi.interop import files, formats, networks

ROOT = pathlib.Path(__file__).parent.parent.parent
BACKBONE = {"moco": "encoder_q.", "simsiam": "encoder.", "byol": "online_encoder."}


def config_of(family, words, **fields):
    config = importlib.import_module(f"configs.{family}").get_config(words)
    config.dtype = "float32"
    with config.unlocked():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


CONFIGS = {
    "moco": config_of(
        "moco",
        "moco_v2,paper",
        backbone__architecture="resnet18",
        method__projector="512-8",
        method__queue=16,
    ),
    "simsiam": config_of(
        "simsiam",
        "simsiam,paper",
        backbone__architecture="resnet18",
        method__projector="512-512-8",
        method__predictor="4-8",
    ),
    "byol": config_of("byol", "sgd,paper", method__projector="16-8", method__predictor="16-8"),
    "mae": config_of("mae", "base"),
}


def mlp(*widths, bias=True):
    """Linear, BatchNorm, ReLU, Linear."""
    first, hidden, last = widths
    return [
        nn.Linear(first, hidden, bias=bias),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, last),
    ]


def moco():
    model = nn.Module()
    for name in ("encoder_q", "encoder_k"):
        encoder = resnets.resnet18(num_classes=8)
        encoder.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), encoder.fc)
        model.add_module(name, encoder)
    model.register_buffer("queue", torch.randn(8, 16))
    model.register_buffer("queue_ptr", torch.tensor([5]))
    return model


def simsiam():
    model = nn.Module()
    model.encoder = resnets.resnet18(num_classes=8)
    first, second = mlp(512, 512, 8, bias=False)[:3], mlp(512, 512, 8, bias=False)[:3]
    last = [model.encoder.fc, nn.BatchNorm1d(8, affine=False)]
    model.encoder.fc = nn.Sequential(*first, *second, *last)
    model.predictor = nn.Sequential(*mlp(8, 4, 8, bias=False))
    return model


def byol():
    model = nn.Module()
    for name in ("online_encoder", "target_encoder"):
        encoder = resnets.resnet50()
        predictor = mlp(8, 16, 8) if name.startswith("online") else []
        encoder.fc = nn.Sequential(*mlp(2048, 16, 8), *predictor)
        model.add_module(name, encoder)
    return model


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        parts = self.attn.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, -1)
        mixed = nn.functional.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
        x = x + self.attn.proj(mixed.transpose(1, 2).reshape(n, tokens, width))
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class Mae(nn.Module):
    """Of configs/mae.py:base: patches of 4 pixels in 16, width 64, 4 blocks; decoder 32, 2."""

    def __init__(self):
        super().__init__()
        tokens = nn.Parameter
        self.cls_token, self.mask_token = (
            tokens(torch.randn(1, 1, 64)),
            tokens(torch.randn(1, 1, 32)),
        )
        self.pos_embed, self.decoder_pos_embed = torch.empty(0), torch.empty(0)
        for name, width in (("pos_embed", 64), ("decoder_pos_embed", 32)):
            setattr(self, name, tokens(torch.zeros(1, 17, width), requires_grad=False))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 64, 4, 4)
        self.blocks = nn.ModuleList([Block(64, 4) for _ in range(4)])
        self.decoder_blocks = nn.ModuleList([Block(32, 4) for _ in range(2)])
        self.norm, self.decoder_norm = nn.LayerNorm(64, eps=1e-6), nn.LayerNorm(32, eps=1e-6)
        self.decoder_embed, self.decoder_pred = nn.Linear(64, 32), nn.Linear(32, 48)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.norm(nn.Sequential(*self.blocks)(x))[:, 0]


MODULES = {"moco": moco, "simsiam": simsiam, "byol": byol, "mae": Mae}


def drawn(name):
    torch.manual_seed(0)
    model = MODULES[name]()
    for key, tensor in model.state_dict().items():
        if key.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", MODULES)
def test_in_with_equal_features_and_out_into_the_same_module(name, tmp_path):
    model, config = drawn(name), CONFIGS[name].copy_and_resolve_references()
    if name == "mae":  # the code that theirs holds
        code = formats.find("mae").write(config, _empty(config), 0).content["model"]
        for table in ("pos_embed", "decoder_pos_embed"):
            getattr(model, table).data = torch.from_numpy(code[table])
    torch.save({"model": model.state_dict(), "epoch": 4}, tmp_path / "theirs.pth")
    state, epoch = files.state_dict(files.read_pth(tmp_path / "theirs.pth"))
    assert epoch == 4
    format_ = formats.find(formats.of_file(state, config))
    network = format_.read(state, config)
    networks.save(tmp_path / "run", network.config, network.variables, epoch)

    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    run = trained.load(tmp_path / "run")
    ours = run.encode(run.params, run.extra, images[:, None])
    with torch.no_grad():
        as_torch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        if name == "mae":
            expected = {"representation": model(as_torch)}
        else:
            encoder = model.get_submodule(BACKBONE[name].rstrip("."))
            head, encoder.fc = encoder.fc, nn.Identity()
            representation = encoder(as_torch)
            encoder.fc = head
            head = head[:4] if name == "byol" else head  # its predictor follows
            expected = {"representation": representation, "embedding": head(representation)}
    for feature, value in expected.items():
        value = value.numpy()
        worst = np.abs(np.asarray(ours[feature])[:, 0] - value).max()
        assert worst < 2e-5 * np.abs(value).max(), feature

    files.write_pth(
        tmp_path / "ours.pth", format_.write(network.config, network.variables, 0).content
    )
    again = files.state_dict(files.read_pth(tmp_path / "ours.pth"))[0]
    blank = MODULES[name]()
    blank.load_state_dict({k: torch.from_numpy(v) for k, v in again.items()}, strict=True)
    for key, tensor in model.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(blank.state_dict()[key], tensor)


def _empty(config):
    shapes = networks.shapes(config, 0)
    return {"params": _zeros(shapes["params"])}


def _zeros(tree):
    return {
        k: _zeros(v) if isinstance(v, dict) else np.zeros(v.shape, v.dtype) for k, v in tree.items()
    }


def run(program, *arguments):
    command = [sys.executable, "-m", f"jaxequi.interop.{program}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_programs(tmp_path):
    """MoCo in and out by the command line, its backbone as torchvision's."""
    model = drawn("moco")
    parallel = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {"epoch": 200, "arch": "resnet18", "state_dict": parallel, "optimizer": {}}
    torch.save(content, tmp_path / "checkpoint_0199.pth.tar")
    words = ["--config=configs/moco.py:moco_v2,paper", "--config.backbone.architecture=resnet18"]
    words += ["--config.method.projector=512-8", "--config.method.queue=16"]
    file, folder = tmp_path / "checkpoint_0199.pth.tar", tmp_path / "run"
    told = run("import_torch", f"--file={file}", f"--workdir={folder}", *words)
    assert "format moco" in told
    told = run("export_torch", folder, f"--file={tmp_path / 'again.pth'}", "--format=moco")
    assert "step 200, as moco" in told
    assert "loads: main_moco.py -a resnet18 --moco-dim 8 --moco-k 16 --mlp, by --resume" in told
    loaded = torch.load(tmp_path / "again.pth", weights_only=True)["state_dict"]
    assert set(loaded) == set(parallel)
    assert all(torch.equal(loaded[k], v) for k, v in parallel.items() if "num_batches" not in k)
    told = run("export_torch", folder, f"--file={tmp_path / 'backbone.pth'}", "--backbone")
    assert "as torchvision" in told
    backbone = resnets.resnet18()
    backbone.fc = nn.Identity()
    backbone.load_state_dict(torch.load(tmp_path / "backbone.pth", weights_only=True), strict=True)


def test_norm_rescale_and_detectron2_of_files(tmp_path):
    """By the command line: two files of a pair of encoders, and each encoder of one of them."""
    state = {}
    for seed, name in enumerate(("sgd", "lars")):
        torch.manual_seed(seed)
        model = nn.Module()
        model.online_encoder, model.target_encoder = resnets.resnet18(), resnets.resnet18()
        state[name] = {f"module.{k}": v for k, v in model.state_dict().items()}
        torch.save({"start_epoch": 200, "model": state[name]}, tmp_path / f"{name}.pth.tar")
    words = [f"--norms={tmp_path / 'sgd.pth.tar'}", f"--weights={tmp_path / 'lars.pth.tar'}"]
    told = run("norm_rescale", *words, "--keep_zeros", f"--output={tmp_path / 'out.pth'}")
    floats = [k for k, v in state["sgd"].items() if "online" in k and v.is_floating_point()]
    assert f"{len(floats)} arrays" in told
    model = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert set(model) == {k.removeprefix("module.") for k in floats}
    for key in ("module.online_encoder.layer2.0.conv1.weight", "module.online_encoder.fc.bias"):
        a, b = (state[name][key].double() for name in ("sgd", "lars"))
        expected = b * (a.norm() / b.norm())
        np.testing.assert_allclose(model[key.removeprefix("module.")], expected, rtol=1e-6)
    for encoder in ("online", "target"):
        output = tmp_path / f"{encoder}.pkl"
        words = [f"--file={tmp_path / 'sgd.pth.tar'}", f"--output={output}"]
        told = run("detectron2", *words, f"--encoder={encoder}")
        assert "120 arrays" in told  # 20 convolutions, 20 norms of five
        other = "target" if encoder == "online" else "online"
        [line] = [line for line in told.splitlines() if line.startswith("left out: ")]
        parts = {f"{encoder}_encoder.fc", f"{other}_encoder.conv1", f"{other}_encoder.layer4"}
        assert parts < set(line.removeprefix("left out: ").split(", "))
        model = pickle.loads(output.read_bytes())["model"]
        key = f"module.{encoder}_encoder.layer1.0.conv2.weight"
        np.testing.assert_array_equal(model["res2.0.conv2.weight"], state["sgd"][key])
