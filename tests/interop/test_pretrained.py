"""Networks that are taken away and brought back: the same values, and every change is found."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from configs import mae
from jaxequi.experiment import trained
from jaxequi.interop import files, formats, networks, pretrained
from tests.conftest import drawn_run


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def represented(network, side):
    """Shapes of what a network gives for two images."""
    views = jax.ShapeDtypeStruct((2, 1, side, side, 3), np.float32)
    return jax.eval_shape(network.encode, network.params, network.extra, views)["representation"]


@pytest.fixture
def classifier_run(tmp_path):
    """A network over C4, not trained, with the small files that a training leaves."""
    (tmp_path / "run").mkdir()
    run = drawn_run(tmp_path / "run", "approximate27", "rotmnist")
    views = np.zeros((4, 1, 27, 27, 3), np.uint8)
    np.savez(run / "examples.npz", views=views, class_names=[str(n) for n in range(10)])
    origin = {"command": "python -m jaxequi.main", "commit": "0" * 40, "date": "2026-11-27"}
    (run / "about.json").write_text(json.dumps({**origin, "cores": 2}))
    rows = [{"step": 2, "loss": 1.0}, {"step": 3, "loss": 0.5, "val/turned/accuracy/seen": 0.25}]
    rows[1] |= {"learning_rate/online": 0.3, "online/top1/representation": 0.1}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_a_classifier_and_what_is_said_of_it(classifier_run, tmp_path):
    folder = pretrained.save_pretrained(classifier_run, tmp_path / "digits", license="mit")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    before, after = trained.load(classifier_run), pretrained.load_pretrained(folder)
    np.testing.assert_equal(after.network, before.network)
    assert (after.step, after.config.to_dict()) == (3, before.config.to_dict())
    about = config_of(folder)
    ours = about.pop("jaxequi")
    assert ours["metrics"] == {"val/turned/accuracy/seen": 0.25}
    assert (ours["names"], ours["seed"], ours["step"]) == ("jaxequi", 0, 3)
    assert (ours["commit"], ours["date"]) == ("0" * 40, "2026-11-27")
    weights = folder / "model.safetensors"
    assert ours["weights"]["bytes"] == weights.stat().st_size
    assert about == {
        "architecture": "rotmnist",
        "num_classes": 10,
        "num_features": 2,
        "label_names": [str(n) for n in range(10)],
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, 27, 27],
            "fixed_input_size": False,
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "interpolation": "bilinear",
            "mean": [0.13083715981299926] * 3,
            "std": [0.043476788322023646] * 3,
            "num_classes": 10,
            "pool_size": None,
            "first_conv": None,
            "classifier": None,
            "license": "mit",
        },
    }
    head, text = (folder / "README.md").read_text().split("---\n")[1:]
    lines = dict(line.split(": ", 1) for line in head.splitlines())
    assert {name: json.loads(value) for name, value in lines.items()} == {
        "license": "mit",
        "library_name": "jaxequi",
        "pipeline_tag": "image-classification",
        "tags": ["jax", "flax", "jaxequi"],
        "datasets": ["subset"],
        "metrics": ["accuracy"],
    }
    assert ours["weights"]["sha256"] in text
    assert "| val/turned/accuracy/seen | 0.25 |" in text


def test_what_was_learned_beside_stays_behind(byol_run, tmp_path):
    before = trained.load(byol_run)
    after = pretrained.load_pretrained(pretrained.save_pretrained(byol_run, tmp_path / "byol"))
    assert "own" in before.extra
    assert {*after.extra} == {"batch_stats"}
    assert {*after.params} == {"backbone", "projector", "predictor"}
    np.testing.assert_equal(after.network, before.network)
    assert represented(after, 16).shape == (2, 1, 32)


def test_a_backbone_under_the_names_of_timm(mae_run, tmp_path):
    folder = pretrained.save_pretrained(mae_run, tmp_path / "mae", backbone_alone=True)
    about = config_of(folder)
    assert about["architecture"] == "vit_tiny_patch16_224"
    args = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": [16, 16]}
    assert about["model_args"] == args
    assert (about["num_classes"], about["global_pool"]) == (0, "token")
    state, header = files.read_safetensors(folder / "model.safetensors")
    assert header == {"format": "pt"}
    block = [f"norm{n}.{leaf}" for n in (1, 2) for leaf in ("weight", "bias")]
    block += [f"attn.{n}.{leaf}" for n in ("qkv", "proj") for leaf in ("weight", "bias")]
    block += [f"mlp.fc{n}.{leaf}" for n in (1, 2) for leaf in ("weight", "bias")]
    tokens = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    blocks = {f"blocks.{n}.{name}" for n in range(2) for name in block}
    assert {*state} == {"norm.weight", "norm.bias"} | tokens | blocks
    assert state["pos_embed"].shape == (1, 17, 16)
    after = pretrained.load_pretrained(folder)
    np.testing.assert_equal(after.params["backbone"], trained.load(mae_run).params["backbone"])
    assert after.method is None
    assert represented(after, 16).shape == (2, 1, 16)


def test_an_octic_transformer_is_none_of_timms():
    config = mae.get_config("smoke")
    plain = pretrained.timm_model(config, {"params": {"backbone": {}}})
    assert plain["architecture"] == "vit_tiny_patch16_224"
    config.backbone = {"name": "octic_vit", "patch": 4, "width": 32, "depth": 2, "heads": 1}
    assert pretrained.timm_model(config, {"params": {"backbone": {}}}) == {}


@pytest.fixture
def resnet18(tmp_path, filled):
    config = formats.find("torchvision").described("resnet18", 3)
    networks.save(tmp_path / "run", config, filled(networks.shapes(config, 3)), 2)
    return tmp_path / "run"


def test_a_resnet_is_that_of_torchvision(resnet18, tmp_path):
    folder = pretrained.save_pretrained(resnet18, tmp_path / "resnet18")
    about = config_of(folder)
    assert about.pop("jaxequi")["names"] == "torchvision"
    assert about == {
        "architecture": "resnet18",
        "global_pool": "avg",
        "num_classes": 3,
        "num_features": 512,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, 224, 224],
            "fixed_input_size": False,
            "crop_pct": 0.875,
            "crop_mode": "center",
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 3,
            "pool_size": None,
            "first_conv": "conv1",
            "classifier": "fc",
            "license": "apache-2.0",
        },
    }
    np.testing.assert_equal(
        pretrained.load_pretrained(folder).network, trained.load(resnet18).network
    )
    alone = pretrained.save_pretrained(resnet18, tmp_path / "alone", backbone_alone=True)
    assert "fc.weight" not in files.read_safetensors(alone / "model.safetensors")[0]
    assert config_of(alone)["pretrained_cfg"]["classifier"] is None
    assert {*pretrained.load_pretrained(alone).params} == {"backbone"}


@pytest.mark.parametrize(
    "change", [{"width": 32}, {"stem": "small"}, {"stage_widths": (8, 8, 8, 8)}, {"epsilon": 1e-3}]
)
def test_a_resnet_of_another_kind_keeps_our_names(change, filled):
    config = formats.find("torchvision").described("resnet18", 3)
    config.norm.epsilon = change.pop("epsilon", 1e-5)
    config.backbone.update(change)
    variables = {"params": {"backbone": {}, "classifier": {}}}
    assert pretrained.timm_model(config, variables) == {}


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (
            "decode|resize(256, filter='bicubic')|center_crop(224)",
            ("bicubic", 0.875, "center", 224),
        ),
        ("decode|resize((33, 33))", ("bilinear", 1.0, "squash", 33)),
        ("decode|resize(256)", ("bilinear", 1.0, "center", 256)),
        ("decode", ("bilinear", 1.0, "center", None)),
    ],
)
def test_how_images_are_shown(views, expected):
    config = formats.find("torchvision").described("resnet18", 3)
    config.val.views = (views,)
    seen = pretrained.shown(config)
    side = seen.get("input_size", [3, None, None])
    fields = seen["interpolation"], seen["crop_pct"], seen["crop_mode"], side[2]
    assert fields == expected
    assert side[1] == side[2]


def copied(folder, tmp_path):
    return pathlib.Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_changed_file_is_refused_by_its_name(mae_run, tmp_path):
    folder = pretrained.save_pretrained(mae_run, tmp_path / "mae")
    for name, damage, message in (
        ("model.safetensors", lambda old: old[:-1] + b"\1", "model.safetensors is another file"),
        ("model.safetensors", lambda old: old[:-4], "model.safetensors is another file"),
        ("model.safetensors", None, "model.safetensors is missing"),
        ("config.json", lambda old: b"{}", "config.json is no config of a network"),
        ("config.json", lambda old: old[:-9], "config.json is no config of a network"),
        ("config.json", None, "config.json cannot be read: No such file"),
    ):
        copy = copied(folder, tmp_path)
        if damage is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(damage((copy / name).read_bytes()))
        with pytest.raises(ValueError, match=message):
            pretrained.load_pretrained(copy)
        shutil.rmtree(copy)
    with pytest.raises(ValueError, match="mae is there already"):
        pretrained.save_pretrained(mae_run, folder)


def test_the_program(mae_run, tmp_path, capsys):
    out, back = tmp_path / "new/mae", tmp_path / "again"
    assert pretrained.main(["", str(mae_run), f"--output={out}", "--step=3"]) == 0
    sha256 = config_of(out)["jaxequi"]["weights"]["sha256"]
    assert capsys.readouterr().out.endswith(f"KiB, sha256 {sha256}\n")
    assert pretrained.main(["", str(out), f"--workdir={back}"]) == 0
    np.testing.assert_equal(trained.load(back).params, trained.load(mae_run).params)
    for words, message in (
        ([f"--output={tmp_path / 'x'}", "--step=4"], "no checkpoint of step 4"),
        ([], "give --output=DIR"),
        ([f"--output={tmp_path / 'x'}", f"--workdir={back}"], "give --output=DIR"),
    ):
        assert pretrained.main(["", str(mae_run), *words]) == 2
        assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "new"]


class Hub:
    """The two calls of `huggingface_hub.HfApi`, on a folder of this machine."""

    root: pathlib.Path

    def __init__(self, library_name):
        assert library_name == "jaxequi"

    def create_repo(self, repository, *, exist_ok, private):
        assert exist_ok
        if repository.count("/") != 1:
            raise ValueError(f"{repository!r} is no name of a repository")
        (self.root / repository).mkdir(parents=True, exist_ok=True)
        return Address(repository, private)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        assert commit_message == "mae, by jaxequi"
        for name in allow_patterns:
            shutil.copy(folder_path / name, self.root / repo_id / name)


class Address(str):
    def __new__(cls, repository, private):
        made = super().__new__(cls, f"https://hub/{repository}{' (private)' if private else ''}")
        made.repo_id = repository
        return made


def test_published(mae_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=Hub))
    monkeypatch.setattr(Hub, "root", tmp_path / "hub", raising=False)
    out = tmp_path / "mae"
    words = [str(mae_run), f"--output={out}", "--push=someone/mae", "--private"]
    assert pretrained.main(["", *words]) == 0
    assert capsys.readouterr().out.endswith("https://hub/someone/mae (private)\n")
    there = pretrained.load_pretrained(tmp_path / "hub/someone/mae")
    np.testing.assert_equal(there.params, pretrained.load_pretrained(out).params)
    (out / "secret").touch()
    pretrained.push_to_hub(out, "someone/again")
    assert len(list((tmp_path / "hub/someone/again").iterdir())) == 3
    with pytest.raises(ValueError, match="was not published: 'mae' is no name"):
        pretrained.push_to_hub(out, "mae")
    with (out / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="is another file"):
        pretrained.push_to_hub(out, "someone/changed")
    assert not (tmp_path / "hub/someone/changed").exists()


def test_publishing_needs_its_extra(mae_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert pretrained.main(["", str(mae_run), f"--output={tmp_path / 'x'}", "--push=a/b"]) == 2
    assert 'pip install -e ".[hub]"' in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
