"""What detectron2 reads, the pickle byte for byte and the settings; NormRescale of two runs."""

from __future__ import annotations

import io
import pathlib
import pickle
import pickletools

import numpy as np
import pytest
import yaml

from configs import byol
from jaxequi.interop import detectron2, mapping, networks, norm_rescale
from jaxequi.interop.formats import _resnet, airl
from jaxequi.train import checkpoint

ROOT = pathlib.Path(__file__).parent.parent.parent
SETTINGS = ROOT / "configs" / "detection"


def pair(**backbone):
    """BYOL over a narrow ResNet of the kind that detectron2 has."""
    config = byol.get_config("sgd,smoke")
    config.backbone = {"name": "torchvision_resnet", "architecture": "resnet18", "width": 4}
    config.backbone.update(backbone)
    return config


class OnlyArrays(pickle.Unpickler):
    """Knows what a plain array needs, under the names that NumPy 1 has."""

    def find_class(self, module, name):
        assert (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
        return super().find_class(module, name)


def test_the_pickle_is_what_detectron2_asks_for():
    """19 bytes of opcodes to the dict, protocol 3; plain arrays, one after the other."""
    kernel = np.arange(12, dtype=np.float32).reshape(2, 3, 1, 2)
    model = {"stem.conv1.weight": kernel, "stem.conv1.norm.num_batches_tracked": np.zeros((), "i8")}
    found = detectron2.pickled(model)
    start = b"\x80\x03}q\x00(X\x05\x00\x00\x00modelq\x01}q\x02("
    assert found.startswith(start + b"X\x11\x00\x00\x00stem.conv1.weightq\x03cnumpy.core.multi")
    assert kernel.tobytes() in found
    end = b"X\n\x00\x00\x00__author__q"
    assert end in found
    assert b"X\x0b\x00\x00\x00torchvisionq" in found[found.index(end) :]
    assert found.endswith(b"\x88u.")  # NEWTRUE, SETITEMS, STOP: matching_heuristics
    assert {op.name for op, *_ in pickletools.genops(found)} >= {"GLOBAL", "BINPUT"}
    loaded = OnlyArrays(io.BytesIO(found)).load()
    assert list(loaded) == ["model", "__author__", "matching_heuristics"]
    assert loaded["matching_heuristics"] is True
    np.testing.assert_equal(loaded["model"], model)
    assert all(
        array.flags.c_contiguous and array.flags.owndata for array in loaded["model"].values()
    )


@pytest.mark.parametrize("encoder", ["online", "target", "supervised"])
def test_every_key_of_a_state_dict_is_accounted_for(encoder, filled):
    config = pair()
    variables = filled(networks.shapes(config, 0))
    if encoder == "supervised":
        state = mapping.to_torch(networks.backbone(variables), _resnet.TABLE)
        state |= {"fc.weight": np.zeros((3, 32)), "fc.bias": np.zeros(3)}
        prefix = ""
    else:
        state, prefix = mapping.to_torch(variables, airl.table(config)), f"{encoder}_encoder."
    model = detectron2.convert({f"module.{k}": a for k, a in state.items()}, encoder)
    expected = [k for k in state if k.startswith(prefix) and "fc." not in k]
    assert len(model) == len(expected) == 20 + 20 * 5  # convolutions, norms with their counters
    for key in expected:
        [name] = [n for n, array in model.items() if array is state[key]]
        assert name == detectron2.rename(key.removeprefix(prefix))
    assert {name.split(".")[0] for name in model} == {"stem", "res2", "res3", "res4", "res5"}
    assert not [n for n in model if "layer" in n or "bn" in n or "downsample" in n]
    shortcut = model["res3.0.shortcut.norm.running_var"]
    np.testing.assert_array_equal(shortcut, state[f"{prefix}layer2.0.downsample.1.running_var"])
    norm = model["res5.1.conv2.norm.bias"]
    np.testing.assert_array_equal(norm, state[f"{prefix}layer4.1.bn2.bias"])


def test_a_run_goes_to_detectron2_and_two_runs_to_norm_rescale(tmp_path, filled, capsys):
    """By the command line, without torch."""
    config = pair()
    a = filled(networks.shapes(config, 0))
    b = {**a, "params": _map(a["params"], lambda x: 2 * x[..., ::-1] ** 2)}
    for name, variables in (("sgd", a), ("lars", b)):
        networks.save(tmp_path / name, config.copy_and_resolve_references(), variables, 3)

    output = tmp_path / "weights.pkl"
    words = [f"--file={tmp_path / 'sgd'}", f"--output={output}", "--encoder=target"]
    assert detectron2.main(["detectron2", *words]) == 0
    model = OnlyArrays(io.BytesIO(output.read_bytes())).load()["model"]
    target = networks.backbone(a["own"]["target"])
    np.testing.assert_array_equal(
        model["res4.0.conv1.weight"],
        target["params"]["layer3_0"]["conv1"]["kernel"].transpose(3, 2, 0, 1),
    )

    words = [
        f"--norms={tmp_path / 'sgd'}",
        f"--weights={tmp_path / 'lars'}",
        "--skip_running_stats",
    ]
    assert norm_rescale.main(["norm_rescale", *words, f"--output={tmp_path / 'rescaled'}"]) == 0
    _, saved, params, extra = checkpoint.read_network(tmp_path / "rescaled" / "checkpoints")
    assert saved["method"]["name"] == "byol"
    for layer in ("conv1", "bn1"):
        for leaf, array in params["backbone"][layer].items():
            norm, direction = (t["params"]["backbone"][layer][leaf] for t in (a, b))
            expected = direction * (np.linalg.norm(norm) / np.linalg.norm(direction))
            np.testing.assert_allclose(array, expected, rtol=1e-6)
    np.testing.assert_equal(extra["batch_stats"], a["batch_stats"])
    np.testing.assert_equal(extra["own"], a["own"])

    (tmp_path / "file.pth").write_text("")
    words[0] = f"--norms={tmp_path / 'file.pth'}"
    assert norm_rescale.main(["norm_rescale", *words, f"--output={tmp_path / 'out'}"]) == 2
    assert "one is a run and one a file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _map(tree, change):
    return {k: _map(v, change) if isinstance(v, dict) else change(v) for k, v in tree.items()}


def test_another_backbone_is_refused(tmp_path, filled):
    config = byol.get_config("sgd,smoke")
    networks.save(tmp_path / "run", config, filled(networks.shapes(config, 0)), 3)
    with pytest.raises(ValueError, match="has the backbone 'resnet'; detectron2's ResNets are"):
        detectron2.of_run(tmp_path / "run")


def settings(name):
    """A file laid over those that it builds on, as detectron2 does."""
    own = yaml.safe_load((SETTINGS / name).read_text())
    base = settings(own.pop("_BASE_")) if "_BASE_" in own else {}
    return _laid(base, own)


def _laid(base, change):
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _laid(base[key], value) if both else value
    return merged


SMALL = [480 + 32 * i for i in range(11)]  # to 800
LARGE = [640 + 32 * i for i in range(6)]
# data, steps of the solver, sizes, masks, classes (None: of COCO)
DETECTION = {
    "voc07_c4_9k": ("voc 2007", "2007", 9000, [6750, 8250], SMALL, False),
    "voc0712_c4_24k": ("voc 2007 2012", "2007", 24000, [18000, 22000], SMALL, False),
    "voc0712_fpn_24k": ("voc 2007 2012", "2007", 24000, [18000, 22000], SMALL, False),
    "coco_c4_1x": ("coco", "", 90000, [60000, 80000], LARGE, True),
    "coco_c4_2x": ("coco", "", 180000, [120000, 160000], LARGE, True),
    "coco_fpn_1x": ("coco", "", 90000, [60000, 80000], LARGE, True),
    "partial_coco_c4": ("coco", "", 45000, [30000, 40000], LARGE, True),
    "partial_coco_fpn": ("coco", "", 45000, [30000, 40000], LARGE, False),
}


@pytest.mark.parametrize("name", DETECTION)
def test_settings_of_detection(name):
    data, year, last, steps, sizes, masks = DETECTION[name]
    found = settings(f"{name}.yaml")
    model, solver = found["MODEL"], found["SOLVER"]
    assert model["META_ARCHITECTURE"] == "GeneralizedRCNN"
    assert (model["MASK_ON"], model["RESNETS"]["DEPTH"]) == (masks, 50)
    assert (solver["MAX_ITER"], solver["STEPS"]) == (last, steps)
    assert (solver["IMS_PER_BATCH"], solver["BASE_LR"]) == (16, 0.02)
    assert solver["CHECKPOINT_PERIOD"] == 10000
    assert found["INPUT"]["MIN_SIZE_TRAIN"] == sizes
    if data == "coco":
        assert found["DATASETS"] == {"TRAIN": ["coco_2017_train"], "TEST": ["coco_2017_val"]}
        assert "NUM_CLASSES" not in model["ROI_HEADS"]
    else:
        years = data.split()[1:]
        assert found["DATASETS"]["TRAIN"] == [f"voc_{y}_trainval" for y in years]
        assert found["DATASETS"]["TEST"] == [f"voc_{year}_test"]
        assert (model["ROI_HEADS"]["NUM_CLASSES"], solver["WARMUP_ITERS"]) == (20, 100)
    if name != "voc0712_fpn_24k":
        _as_pretrained(found)
    else:
        assert not {"PIXEL_MEAN", "PIXEL_STD"} & set(model)
        assert "FORMAT" not in found["INPUT"]
        assert not {"NORM", "STRIDE_IN_1X1"} & set(model["RESNETS"])
    if "_c4" in name:
        assert model["ROI_HEADS"]["NAME"] == "Res5ROIHeadsExtraNorm"
        assert model["RPN"] == {"PRE_NMS_TOPK_TEST": 6000, "POST_NMS_TOPK_TEST": 1000}
        assert found["INPUT"]["MIN_SIZE_TEST"] == 800
    else:
        _pyramid(model, normed=name != "voc0712_fpn_24k")


def _as_pretrained(found):
    """Images, strides and norms as the pre-training had them."""
    model = found["MODEL"]
    assert model["PIXEL_MEAN"] == [123.675, 116.280, 103.530]
    assert model["PIXEL_STD"] == [58.395, 57.120, 57.375]
    assert found["INPUT"]["FORMAT"] == "RGB"
    assert (model["RESNETS"]["NORM"], model["RESNETS"]["STRIDE_IN_1X1"]) == ("SyncBN", False)
    assert model["BACKBONE"]["FREEZE_AT"] == 0
    assert found["TEST"]["PRECISE_BN"]["ENABLED"] is True


def _pyramid(model, normed):
    assert model["ANCHOR_GENERATOR"]["SIZES"] == [[32], [64], [128], [256], [512]]
    assert model["ANCHOR_GENERATOR"]["ASPECT_RATIOS"] == [[0.5, 1.0, 2.0]]
    for kept in ("PRE", "POST"):
        assert model["RPN"][f"{kept}_NMS_TOPK_TEST"] == 1000
        assert model["RPN"][f"{kept}_NMS_TOPK_TRAIN"] == (2000 if kept == "PRE" else 1000)
    box, mask = model["ROI_BOX_HEAD"], model["ROI_MASK_HEAD"]
    assert (box["POOLER_RESOLUTION"], mask["POOLER_RESOLUTION"], mask["NUM_CONV"]) == (7, 14, 4)
    if normed:
        assert (box["NUM_CONV"], box["NUM_FC"]) == (4, 1)
        assert [model["FPN"]["NORM"], box["NORM"], mask["NORM"]] == ["SyncBN"] * 3


def test_settings_of_segmentation():
    found = settings("cityscapes_deeplabv3.yaml")
    _as_pretrained(found)
    model = found["MODEL"]
    assert model["RESNETS"]["RES5_DILATION"] == 2
    assert model["RESNETS"]["RES5_MULTI_GRID"] == [1, 2, 4]
    assert model["RESNETS"]["STEM_TYPE"] == "basic"
    head = model["SEM_SEG_HEAD"]
    assert (head["ASPP_CHANNELS"], head["ASPP_DILATIONS"]) == (256, [6, 12, 18])
    assert (head["ASPP_DROPOUT"], head["CONVS_DIM"], head["NUM_CLASSES"]) == (0, 256, 19)
    assert (head["LOSS_TYPE"], head["COMMON_STRIDE"]) == ("hard_pixel_mining", 16)
    solver, shown = found["SOLVER"], found["INPUT"]
    assert (solver["MAX_ITER"], solver["IMS_PER_BATCH"], solver["BASE_LR"]) == (90000, 16, 0.01)
    assert solver["LR_SCHEDULER_NAME"] == "WarmupPolyLR"
    assert shown["MIN_SIZE_TRAIN"] == [512, *range(768, 2049, 256)]
    assert (shown["MIN_SIZE_TEST"], shown["MAX_SIZE_TEST"]) == (1024, 2048)
    crop = {"ENABLED": True, "TYPE": "absolute", "SIZE": [512, 1024]}
    assert shown["CROP"] == {**crop, "SINGLE_CATEGORY_MAX_AREA": 1.0}
    cities = [f"cityscapes_fine_sem_seg_{split}" for split in ("train", "val")]
    assert found["DATASETS"] == {"TRAIN": cities[:1], "TEST": cities[1:]}


def test_every_file_of_settings_is_checked():
    bases = {"base_c4.yaml", "base_fpn.yaml"}
    checked = {f"{name}.yaml" for name in (*DETECTION, "cityscapes_deeplabv3")}
    assert {file.name for file in SETTINGS.glob("*.yaml")} == checked | bases
    text = (SETTINGS / "README.md").read_text()
    assert all(name in text for name in (*DETECTION, "cityscapes_deeplabv3"))
