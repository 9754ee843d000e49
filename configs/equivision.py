"""Steerable ResNets over C_N and D_N, trained for classification.

equivision, `train.py`, `equivision/{e2resnet, models}.py`: torchvision's ResNets with steerable
convolutions between regular fields (Weiler and Cesa, NeurIPS 2019; Cesa, Lang and Weiler, ICLR
2022), of as many parameters as the plain ones.

    python -m jaxequi.main --config=configs/equivision.py              # C8, scikit-learn's digits
    python -m jaxequi.main --config=configs/equivision.py:d4resnet18,rotated
    python -m jaxequi.main --config=configs/equivision.py:c8resnet50,paper \\
        --config.train.source.root=imagenet/train --config.val.source.root=imagenet/val
    python -m jaxequi.main --config=configs/equivision.py:c8resnet18,circle \\
        --config.init_from=runs/NAME --config.total_epochs=0           # judge what is trained

Variants are networks: `c1`, `d1`, `c4`, `d4`, `c8` and `d8` with `resnet18`, `resnet50` and
`resnet101`; any other C_N or D_N by --config.backbone.architecture=c6resnet50. Words:

    rotated    images turned by any angle, in training and where top-1 and top-5 are counted
    circle     72 angles in place of 8 in `val/turned`: every turn of C8, and every five degrees
    exact      sides of 32 m + 1 pixels, 225 in place of 224, on which every stride keeps the group
    fast       the reference's narrow networks, with the channels of the plain ones
    paper      the published recipe: 90 epochs of ImageNet in class folders
    tfds       after `paper`: ImageNet as TFDS prepared it
    tfrecord   after `paper`: ImageNet in TFRecords, --config.train.source.files=DIR
    smoke      three steps

`paper` is SGD with the rate 0.1, divided by ten after epochs 30 and 60 of 90, momentum 0.9 and
weight decay 1e-4 on all parameters, 256 images of which BatchNorm sees 32 at a time (the
reference's four devices in two accumulated parts), half precision, seed 10. Of what training learns
`val/classification` is the reference's validation; the best checkpoint is that of the lowest
validation loss. A run begins by saying whether the network is exact at its size: at 224 none is.

Measured on the embedded digits (33 pixels, 30 epochs of 22 steps, seed 0, 359 test digits; two CPU
cores that others shared, 2026-11-27), % correct upright, over the quarter turns and over 8 angles:
C8 99.4, 99.4 and 62.4. Quarter turns, which it has not seen, are exact at 33 pixels; of those by
45 degrees a network with five strides knows only a quarter, though its filters do.

What was published of `paper` stands below, and in its reports beside what is measured; nothing of
it was trained here.
"""

from configs import common
from jaxequi.data import recipes

GROUPS, DEPTHS = ("c8", "c1", "d1", "c4", "d4", "d8"), (18, 50, 101)
VARIANTS = {f"{group}resnet{depth}": {} for depth in DEPTHS for group in GROUPS}
# Top-1 and top-5 on ImageNet, one crop of 224.
PUBLISHED = {
    "d1resnet18": (0.709, 0.901),
    "c4resnet18": (0.734, 0.915),
    "d4resnet18": (0.737, 0.916),
    "c8resnet18": (0.738, 0.914),
    "d8resnet18": (0.736, 0.915),
    "d1resnet50": (0.769, 0.935),
    "c4resnet50": (0.785, 0.943),
    "d4resnet50": (0.789, 0.946),
    "c8resnet50": (0.787, 0.945),
    "d1resnet101": (0.785, 0.937),
    "c4resnet101": (0.801, 0.952),
    "d4resnet101": (0.804, 0.953),
}
# a seventh of the published widths, a fiftieth of the parameters
WIDTHS = {"c1": 11, "d1": 8, "c4": 6, "d4": 4, "c8": 4, "d8": 3}


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, C8 and 18 layers."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    config = common.base()
    config.method = {"name": "supervised", "num_classes": None, "turns": 8}
    width = WIDTHS[variant.partition("resnet")[0]]
    config.backbone = {
        "name": "steerable_resnet",
        "architecture": variant,
        "width": width,
        "fast": False,
        "fit": False,
        "antialias": False,
    }
    config.online.features = ()
    config.evals = {"classification": {}, "turned": {}}
    config.show = ("loss", "accuracy", "val/classification/top*", "val/turned/accuracy/*")

    source = {"name": "digits"}
    augment = ("normalise('unit')",)
    config.train = common.train_set({**source, "split": "train"}, (), augment)
    config.val = common.held_out_set({**source, "split": "test"}, (), augment, batch_size=128)
    _shown(config, "decode|resize((33, 33))|pad_crop(2)", "decode|resize((33, 33))", words)
    config.batch_size = 64
    config.total_epochs = 30
    config.optimizer = common.sgd_drops(1 / 3, 2 / 3)
    config.eval_every_steps = 10_000  # at the end
    for word in words:
        WORDS[word](config, words)
    return config


def _shown(config, train: str, val: str, words) -> None:
    """Write the host pipes."""
    turn = "|rotate((-180, 180))" if "rotated" in words else ""
    config.train.views, config.val.views = (train + turn,), (val + turn,)


def _read_elsewhere(config, words) -> None:
    """Read where the pipes are written, or the words below asked for."""


def _circle(config, words) -> None:
    """Judge at 72 angles."""
    config.method.turns = 72


def _fast(config, words) -> None:
    """The reference's narrow widths."""
    config.backbone.width, config.backbone.fast = None, True


def _paper(config, words) -> None:
    """The published recipe: 90 epochs of ImageNet."""
    config.backbone.width = None
    side = 225 if "exact" in words else 224
    [train], [val] = recipes.imagenet(side).views, recipes.imagenet_eval(side).views
    _shown(config, train, val, words)
    for part, name in ((config.train, "train"), (config.val, "val")):
        part.source = {"name": "folder", "root": f"imagenet/{name}"}
        part.augment = recipes.imagenet(side).augment
    config.batch_size = config.val.batch_size = 256
    config.norm.groups = 8
    config.dtype = "bfloat16"
    config.seed = 10
    config.total_epochs = 90
    config.best, config.best_mode = "val/classification/cross_entropy", "min"
    network = config.backbone.architecture
    if network in PUBLISHED and not {"fast", "rotated", "exact"} & set(words):
        config.published = dict(zip(("top-1", "top-5"), PUBLISHED[network], strict=True))
    config.eval_every_steps = config.save_every_steps = 5004  # 1,281,167 images // 256


def _tfds(config, words) -> None:
    """ImageNet as TFDS prepared it."""
    for part, split in ((config.train, "train"), (config.val, "validation")):
        part.source = {"name": "tfds", "dataset": "imagenet2012", "split": split}


def _tfrecord(config, words) -> None:
    """ImageNet in TFRecords."""
    for part, name in ((config.train, "train"), (config.val, "val")):
        part.source = {"name": "tfrecord", "files": f"imagenet/{name}/data", "classes": 1000}


def _smoke(config, words) -> None:
    """Three steps of a narrow network of 18 layers."""

    def shrink(config):
        group = config.backbone.architecture.partition("resnet")[0]
        config.backbone.update({"architecture": f"{group}resnet18", "width": 1, "fast": False})
        config.method.turns = 4
        config.norm.groups, config.dtype = 1, "float32"
        for part, split in ((config.train, "train"), (config.val, "test")):
            digits = {"name": "digits", "split": split}
            part.source = {"name": "subset", "source": digits, "start": 0.0, "stop": 0.1, "seed": 1}
            part.augment = ("normalise('unit')",)
        _shown(config, "decode|resize((33, 33))", "decode|resize((33, 33))", words)
        config.val.batch_size = 8

    common.smoke(config, shrink)


WORDS = {
    "rotated": _read_elsewhere,
    "exact": _read_elsewhere,
    "circle": _circle,
    "fast": _fast,
    "paper": _paper,
    "tfds": _tfds,
    "tfrecord": _tfrecord,
    "smoke": _smoke,
}
