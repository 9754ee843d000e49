"""Files of MoCo, SimSiam, revisitAIRL and MAE: state dicts of the published code in and out."""

from __future__ import annotations

import functools
import json
import pathlib
import re

import ml_collections
import numpy as np
import pytest
from case import Case

from configs import byol, mae, moco, simsiam
from configs import linear as linear_config
from jaxequi import experiment
from jaxequi.experiment import trained
from jaxequi.interop import files, formats, mapping, networks, pretrained
from jaxequi.interop.formats import _vit, airl, mae_linear
from jaxequi.models import torchvision_resnet
from jaxequi.nn.transformer import sincos_positions
from jaxequi.train import loop

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "airl"
FAMILIES = {"byol": byol, "mae": mae, "moco": moco, "simsiam": simsiam}


def config_of(words, **fields):
    family, _, words = words.partition(":")
    config = FAMILIES[family].get_config(words)
    with config.unlocked():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def of_case(words, name):
    """The config of the network that a stored case of the published code has."""
    meta = Case(GOLDEN / f"{name}.npz").meta
    config = config_of(f"{words},paper")
    if words.startswith("mae"):
        size = {"patch": meta["p"], "width": meta["D"], "depth": meta["depth"], "heads": meta["H"]}
        config.backbone = {"name": "vit", **size, "mlp_ratio": meta["mlp"]}
        config.train.views = config.val.views = (f"decode|random_resized_crop({meta['hw']})",)
        if "Dd" in meta:
            for ours, theirs in (("width", "Dd"), ("depth", "dd"), ("heads", "Hd")):
                config.method[f"decoder_{ours}"] = meta[theirs]
        return config
    widths = tuple(meta.get("stage_planes", meta.get("widths")))
    stem = meta.get("stem_width", meta.get("stem"))
    config.backbone = {"name": "torchvision_resnet", "architecture": "tiny", "width": stem}
    config.backbone.stage_widths, config.norm.groups = widths, 1
    features, method = 4 * widths[-1], config.method
    if "dim" in meta:
        method.projector = f"{features}-" * (1 if meta.get("mlp") else 0) + str(meta["dim"])
        if "pred" in meta:
            method.projector = f"{features}-{features}-{meta['dim']}"
            method.predictor = f"{meta['pred']}-{meta['dim']}"
        else:
            method.queue = meta["K"]
        return config
    both = f"{meta['hidden_dim']}-{meta['low_dim']}"
    method.projector = str(meta["low_dim"]) if meta["MLP"] == "cls" else both
    if "predictor" in method:
        method.predictor = both
    if "queue_size" in meta:
        method.queue = meta["queue_size"]
    return config


def classifier(config, pool):
    """A classifier fine-tuned over the transformer of a config."""
    config.method = {"name": "supervised", "num_classes": None}
    config.backbone.pool, config.backbone.positions = pool, "learned"
    return config


STORED = {  # case, and where in it -> format, config
    "airl_step_mocov1": ("param/model", "airl", "moco:v1"),
    "airl_step_mocov2": ("param/model", "airl", "moco:v2"),
    "airl_step_mocov2plus": ("param/model", "airl", "moco:v2plus"),
    "airl_step_mocov2plus_lars": ("param/model", "airl", "moco:v2plus_lars"),
    "airl_step_smocov2plus": ("param/model", "airl", "moco:v2plus_symmlp"),
    "airl_step_byol": ("param/model", "airl", "byol:sgd"),
    "moco_step_v1": ("param", "moco", "moco:moco_v1"),
    "moco_step_v2": ("param", "moco", "moco:moco_v2"),
    "simsiam_step": ("param", "simsiam", "simsiam:simsiam"),
    "mae_forward": ("param", "mae", "mae:base"),
    "mae_vit_finetune mean": ("param/gap", "vit", "mae:base"),
    "mae_vit_finetune token": ("param/cls", "vit", "mae:base"),
}


@pytest.fixture
def tiny_resnet(monkeypatch):
    network = functools.partial(
        torchvision_resnet.ResNet, block=torchvision_resnet.Bottleneck, stage_sizes=(1, 1, 1, 1)
    )
    monkeypatch.setitem(torchvision_resnet.NETWORKS, "tiny", network)


@pytest.mark.parametrize("name", STORED)
@pytest.mark.usefixtures("tiny_resnet")
def test_a_state_dict_of_the_published_code_comes_back_exactly(name):
    where, format_, words = STORED[name]
    case, _, pool = name.partition(" ")
    state = Case(GOLDEN / f"{case}.npz").under(where)
    config, module = of_case(words, case), formats.find(format_)
    config = classifier(config, pool) if pool else config
    assert formats.of_file(state) == formats.of_file(state, config) == format_
    network = module.read(state, config.copy_and_resolve_references())
    if format_ in ("mae", "vit"):  # of any size
        back = module.write(network.config, network.variables, 0).content["model"]
    else:
        table = getattr(module, "table", lambda _: module.TABLE)(network.config)
        back = mapping.to_torch(network.variables, table)
    assert set(back) == set(state)
    for key, array in state.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[key], array, err_msg=key, strict=True)
    # what differs is told, on both sides
    last = next(k for k in reversed(state) if k.endswith(".bias"))
    renamed = {k.replace(last, "other.bias"): array for k, array in state.items()}
    with pytest.raises(ValueError, match=rf"(?s)- {re.escape(last)} \(for .*\+ other\.bias"):
        module.read(renamed, config)


@pytest.mark.usefixtures("tiny_resnet")
def test_a_classifier_of_revisitairl_is_torchvisions():
    state = Case(GOLDEN / "airl_step_supervised.npz").under("param/model")
    assert formats.of_file(state) == "airl"
    config = formats.find("torchvision").described("resnet50", 10)
    config.backbone = of_case("byol:sgd", "airl_step_byol").backbone
    network = airl.read(state, config)
    np.testing.assert_array_equal(
        network.variables["params"]["classifier"]["kernel"], state["fc.0.weight"].T
    )


def small_mae(**backbone):
    config = config_of("mae:base")
    config.backbone = {**config.backbone, **backbone}
    return config


def small(words, **fields):
    return config_of(f"{words},paper", backbone__architecture="resnet18", **fields)


# 20 convolutions and 20 norms in ResNet-18's backbone, 53 of each in that of ResNet-50
FRESH = {  # format, config -> parameters of each group, the original's arguments
    "moco": (
        small("moco:moco_v2", method__projector="512-8", method__queue=16),
        [2 * (20 + 40 + 4)],
        "main_moco.py -a resnet18 --moco-dim 8 --moco-k 16 --mlp, by --resume",
    ),
    "simsiam": (
        small("simsiam:fix_pred_lr", method__projector="512-512-8", method__predictor="4-8"),
        [20 + 40 + 8, 5],
        "main_simsiam.py -a resnet18 --dim 8 --pred-dim 4 --fix-pred-lr, by --resume",
    ),
    "airl": (
        config_of(
            "moco:v2plus_lars,paper",
            method__projector="16-8",
            method__predictor="16-8",
            method__queue=16,
        ),
        [53 + 4, 106 + 8],
        "train.py -f exp/moco_based/mcv2p_lars.py --exp-options MLP=byol low_dim=8 width=1 "
        "hidden_dim=16 queue_size=16",
    ),
}


@pytest.mark.parametrize("name", FRESH)
def test_out_and_back_with_a_fresh_optimizer(name, filled):
    config, groups, loads = FRESH[name]
    module = formats.find(name)
    variables = filled(networks.shapes(config, 1000))
    assert variables["params"]["online"]
    file = module.write(config, variables, 7)
    assert file.loads == loads
    found = file.content["optimizer"]["param_groups"]
    assert [len(group["params"]) for group in found] == groups
    assert found[-1]["params"][-1] == sum(groups) - 1
    state, epoch = files.state_dict(file.content)
    assert epoch == 7
    network = module.read(state, config.copy_and_resolve_references())
    if name == "airl":  # a classifier beside the method goes along
        np.testing.assert_equal(network.variables, variables)
        assert set(file.content["classifier"]) == {"module.weight", "module.bias"}
    else:
        assert file.left_out[0].startswith("label_representation: the original has no such head")
        del variables["params"]["online"]
        np.testing.assert_equal(network.variables, variables)
        assert network.config.online.features == ()
    again = module.write(network.config, network.variables, 7)
    np.testing.assert_equal(again.content, file.content)


def test_every_training_has_its_formats():
    expected = {
        ("byol", "sgd"): "airl",
        ("byol", "lars"): "airl",
        ("moco", "v2plus"): "airl",
        ("moco", "v2plus_lars"): "airl",
        ("moco", "v2plus_symmlp"): "airl",
        ("simsiam", "simsiam"): "simsiam",
        ("simsiam", "fix_pred_lr"): "simsiam",
        ("mae", "base"): "mae",
    }
    for (family, variant), format_ in expected.items():
        assert formats.of_run(config_of(f"{family}:{variant},paper")) == format_
    for variant in ("v1", "v2", "moco_v1", "moco_v2"):  # either repository has them
        with pytest.raises(ValueError, match="airl and moco have a place for method 'moco'"):
            formats.of_run(config_of(f"moco:{variant},paper"))
        heads = airl.original(config_of(f"moco:{variant},paper")).split()[3]
        assert heads == ("MLP=cls" if "v1" in variant else "MLP=moco")
    symmetric = airl.original(config_of("moco:v2plus_symmlp,paper"))
    assert "MLP=mcv2p low_dim=256 width=1 hidden_dim=4096 queue_size=65536" in symmetric


@pytest.mark.parametrize(
    ("format_", "config", "message"),
    [
        (
            "moco",
            small("moco:v2", method__projector="64-8"),
            r"as wide as resnet18's features \(51",
        ),
        ("moco", small("moco:v2", backbone__width=8), "width 64, and this run has width=8"),
        ("moco", config_of("moco:v2plus,paper"), "has no place for method 'moco'"),
        ("moco", config_of("moco:v2"), "no place for method 'moco', backbone 'resnet'"),
        ("airl", small("byol:sgd"), "no backbone 'resnet18', only resnet50"),
        (
            "airl",
            config_of("byol:sgd,paper", method__predictor="8-256"),
            r"no heads with projector=\(4096, 256\), predictor=\(8, 256\)",
        ),
        ("simsiam", small("simsiam:simsiam"), r"features \(512\), and its predictor two; this run"),
        ("mae", small_mae(positions="learned"), "pre-training holds its positions fixed"),
        ("vit", small_mae(), "no place for method 'mae'"),
    ],
)
def test_what_the_original_does_not_have_is_refused(format_, config, message):
    with pytest.raises(ValueError, match=message):
        formats.find(format_).write(config, {"params": {}}, 0)


def test_tables_of_positions_are_told_apart():
    state = Case(GOLDEN / "mae_forward.npz").under("param")
    config = of_case("mae:base", "mae_forward")
    learned = {**state, "pos_embed": state["pos_embed"] + 0.01}
    with pytest.raises(ValueError, match="pos_embed is not the code of sines and cosines"):
        formats.find("mae").read(learned, config.copy_and_resolve_references())
    cut = {**state, "pos_embed": state["pos_embed"][:, :-1]}
    with pytest.raises(ValueError, match="no table of the positions of a square"):
        formats.find("mae").read(cut, config.copy_and_resolve_references())
    config = config.copy_and_resolve_references()
    config.train.views = ("decode",)
    with pytest.raises(ValueError, match="positions depend on the size of the images"):
        _vit.side(config)


def test_an_encoder_says_itself_what_network_it_is(filled):
    """As MAE's released encoders are, and timm's; told by the sizes that have a name."""
    config = config_of(
        "mae:base,paper", backbone__architecture="tiny", backbone__positions="learned"
    )
    config = classifier(config, "token")
    config.online.features = ()
    variables = filled(networks.shapes(config, 3, 48))
    file = formats.find("vit").write(config, variables, 0)
    assert "embed_dim=192, depth=12, num_heads=3, mlp_ratio=4.0" in file.loads
    state = file.content["model"]
    network = formats.find("vit").read(state, None)
    np.testing.assert_equal(network.variables, variables)
    assert network.config.method.num_classes == 3
    assert network.config.val.views == ("decode|resize(54, filter='bicubic')|center_crop(48)",)
    alone = {k: v for k, v in state.items() if not k.startswith("head")}
    alone["pos_embed"] = sincos_positions(192, 3, 3)[None]
    network = formats.find("vit").read(alone, None)
    assert network.config.method is None
    assert dict(network.config.backbone) == {
        "name": "vit",
        "architecture": "tiny",
        "pool": "token",
        "positions": "fixed",
    }
    assert "pos_embed" not in network.variables["params"]["backbone"]
    [line] = network.left_out
    assert line == "pos_embed: the code of sines and cosines, which ours computes"
    again = formats.find("vit").write(network.config, network.variables, 0)
    np.testing.assert_equal(again.content["model"], alone)
    shallow = {k: v for k, v in alone.items() if not k.startswith("blocks.11")}
    with pytest.raises(ValueError, match="has patch=16, width=192, depth=11; give a --config"):
        formats.find("vit").read(shallow, None)


@pytest.fixture(scope="module")
def probe():
    """A linear probe of the published code after three steps: state dict, images, logits."""
    case = Case(GOLDEN / "mae_linprobe.npz")
    state = dict(case.under("param"))
    for name, found in (("1.weight", "weight_2"), ("1.bias", "bias_2")):
        state[f"head.{name}"] = case[f"out/{found}"]
    for moment in ("mean", "var"):
        state[f"head.0.running_{moment}"] = case[f"out/bn_running_{moment}"]
    images = np.moveaxis(case["in/imgs_2"], 1, -1)
    return state, images, case["out/eval_logits"], case.meta


def probe_config(meta, **method):
    config = linear_config.get_config("mae")
    size = {"patch": meta["p"], "width": meta["D"], "depth": meta["depth"], "heads": meta["H"]}
    config.backbone = {"name": "vit", **size, "mlp_ratio": meta["mlp"], "positions": "learned"}
    config.train.views = config.val.views = (f"decode|resize({meta['hw']})",)
    with config.method.unlocked():
        config.method.update(method)
    return ml_collections.ConfigDict(config.to_dict()).lock()


def test_a_linear_probe_of_mae(probe, tmp_path):
    state, images, logits, meta = probe
    config = probe_config(meta, norm_groups=32)
    assert formats.of_file(state) == formats.of_file(state, config) == "mae_linear"
    network = mae_linear.read(state, config)
    assert network.config.method.num_classes == 5
    assert len(network.left_out) == 1  # the counter of batches
    networks.save(tmp_path / "probe", network.config, network.variables, 3)
    step, saved, variables = networks.load(tmp_path / "probe")
    assert (step, formats.of_run(saved)) == (3, "mae_linear")

    method = experiment.make_method(saved, {})
    params, extra = variables.pop("params"), variables
    features = method.encode(params, extra, images[:, None])
    np.testing.assert_allclose(
        features["heads"]["classification-all-linear"][:, 0], logits, rtol=1e-4, atol=1e-5
    )
    file = mae_linear.write(saved, {"params": params, **extra}, 0)
    assert "VisionTransformer(patch_size=8, embed_dim=16, depth=2, num_heads=2" in file.loads
    assert "num_classes=5, global_pool=False) of models_vit.py with its head as" in file.loads
    assert set(file.content["model"]) == set(state)
    for key, array in state.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(file.content["model"][key], array, err_msg=key)
    # Its frozen encoder is what --backbone writes, and what another run may start with.
    _, saved, alone = networks.load(tmp_path / "probe", backbone_alone=True)
    encoder = formats.find(formats.of_run(saved)).write(saved, alone, 0).content["model"]
    assert set(encoder) == {key for key in state if not key.startswith("head")}
    run = trained.load(tmp_path / "probe")
    found = run.encode(run.params, run.extra, images[:, None])["representation"]
    np.testing.assert_allclose(found, features["representation"], atol=1e-6)
    # Taken away and made a run again it is the same.
    taken = pretrained.save_pretrained(tmp_path / "probe", tmp_path / "taken")
    np.testing.assert_equal(pretrained.load_pretrained(taken).network, run.network)
    assert pretrained.main(["", str(taken), f"--workdir={tmp_path / 'again'}"]) == 0
    np.testing.assert_equal(
        networks.load(tmp_path / "again")[2], networks.load(tmp_path / "probe")[2]
    )


def test_what_no_linear_probe_of_mae_is(probe):
    state, *_, meta = probe
    renamed = {key.replace("1.bias", "2.bias"): array for key, array in state.items()}
    with pytest.raises(ValueError, match=r"(?s)- head\.1\.bias \(for .*\+ head\.2\.bias"):
        mae_linear.read(renamed, probe_config(meta))
    moved, config = {**state, "pos_embed": state["pos_embed"] + 1}, probe_config(meta)
    config.backbone.positions = "fixed"
    with pytest.raises(ValueError, match="not the code of sines and cosines"):
        mae_linear.read(moved, config)
    with pytest.raises(ValueError, match=r"(?s)- head.1.weight \(for .*linear_0/kernel \(16, 3\)"):
        mae_linear.read(state, probe_config(meta, num_classes=3))
    with pytest.raises(ValueError, match="norm_epsilon=1e-05, and that of the original is 1e-06"):
        mae_linear.read(state, probe_config(meta, norm_epsilon=1e-5))
    for change in ({"batch_norm": "behind"}, {"batch_norm": ""}, {"drift": True}):
        config = probe_config(meta, **change)
        assert not mae_linear.native(config)
        with pytest.raises(ValueError, match="the config describes method 'linear'"):
            formats.of_file(state, config)


def test_a_linear_probe_says_itself_what_network_it_is(filled):
    meta = {"p": 16, "D": 192, "depth": 12, "H": 3, "mlp": 4.0, "hw": 224}
    config = probe_config(meta, num_classes=7)
    config.backbone.positions = "fixed"
    variables = filled(networks.shapes(config, 7, 32))
    state = mae_linear.write(config, variables, 0).content["model"]
    np.testing.assert_array_equal(state["pos_embed"], sincos_positions(192, 14, 14)[None])
    network = mae_linear.read(state, None)
    np.testing.assert_equal(network.variables, variables)
    assert dict(network.config.backbone) == {
        "name": "vit",
        "architecture": "tiny",
        "pool": "token",
        "positions": "fixed",
    }
    config.backbone.update(width=768, heads=12)
    variables = filled(networks.shapes(config, 7, 32))
    file = mae_linear.write(config, variables, 0)
    assert file.loads == (
        "main_linprobe.py --model vit_base_patch16 --nb_classes 7, by --resume --eval"
    )


def test_a_probe_on_stored_features_is_written_with_its_network(tmp_path, filled):
    config = config_of("mae:base,smoke")
    variables = filled(networks.shapes(config, 0, 16))
    networks.save(tmp_path / "mae", config, variables, 2)
    probed = linear_config.get_config("mae,smoke")
    probed.init_from, probed.cache.folder = str(tmp_path / "mae"), str(tmp_path / "features")
    assert loop.run(experiment.build(probed), tmp_path / "run") == loop.FINISHED
    _, saved, variables = networks.load(tmp_path / "run")
    state = mae_linear.write(saved, variables, 0).content["model"]
    kernel = variables["own"]["backbone"]["params"]["patch_embed"]["kernel"]
    np.testing.assert_array_equal(state["patch_embed.proj.weight"], kernel.transpose(3, 2, 0, 1))
    # read again, it is judged as it stands
    network = mae_linear.read(state, saved.copy_and_resolve_references())
    networks.save(tmp_path / "again", network.config, network.variables, 3)
    judged = linear_config.get_config("mae,smoke")
    judged.init_from, judged.fresh, judged.total_steps = str(tmp_path / "again"), "", 0
    judged.cache.on = False
    assert loop.run(experiment.build(judged), tmp_path / "judged") == loop.FINISHED
    first, second = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("run", "judged")
    )
    same = [key for key in second if key.startswith("val/heads/")]
    assert "val/heads/top1/classification-all-linear" in same
    for key in same:
        assert second[key] == pytest.approx(first[key], rel=1e-5)


def test_an_imported_checkpoint_is_evaluated(tmp_path, filled):
    config = config_of("moco:v2plus,smoke")
    config.backbone = {"name": "torchvision_resnet", "architecture": "resnet18", "width": 4}
    variables = filled(networks.shapes(config, 0))
    state = mapping.to_torch(variables, airl.table(config))
    network = airl.read(state, config)
    networks.save(tmp_path / "imported", network.config, network.variables, 2)
    evaluated = linear_config.get_config("linear,smoke")
    evaluated.init_from, evaluated.init_encoder = str(tmp_path / "imported"), "target"
    evaluated.cache.folder = str(tmp_path / "features")
    assert loop.run(experiment.build(evaluated), tmp_path / "run") == loop.FINISHED
    assert "val/knn/top1" in (tmp_path / "run" / "metrics.jsonl").read_text()
