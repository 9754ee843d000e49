"""Group ResNets on CIFAR, Flowers and PatchCamelyon: exact and approximate by one pixel.

Edixhoven, Lengyel, van Gemert: Using and Abusing Equivariance, ICCV workshops 2023, arXiv
2308.11316; `experiments/classification/{train.py, pcam/main.py}`.

    python -m jaxequi.main --config=configs/classification.py             # scikit-learn's digits
    python -m jaxequi.main --config=configs/classification.py:cifar10,paper
    python -m jaxequi.main --config=configs/classification.py:cifar10,exact,turned,paper
    python -m jaxequi.main --config=configs/classification.py:pcam,paper --config.check=error

Variants are data sets: `digits` (the embedded default, 16 pixels), `cifar10`, `cifar100`,
`flowers102`, `pcam`. Words: `exact` gives images one pixel more, so that every stride of the
network fits; `coset` makes the head invariant; `turned` turns training images by a random quarter;
`paper` the published budget. Any network of `models/gresnet.py` by --config.backbone.architecture,
a fraction of the training set by --config.train.source.stop.

The last metrics are `val/turned/accuracy/seen` (upright test images) and `.../unseen` (all quarter
turns). Published: a network that misses its grid by a pixel generalises worse to turned images it
has not seen; the numbers of the paper's tables are not in its repository.

Measured on the embedded digits (10 epochs, under a minute on two CPU cores; 359 test digits;
2026-11-22; seeds 1, 2, 3: mean and standard deviation, % correct):

                             upright       all quarter turns
    digits                   99.1 +- 0.2   44.0 +- 3.1
    digits,exact             99.4 +- 0.3   47.8 +- 6.6
    digits,coset             99.2 +- 0.7   50.3 +- 2.7
    digits,exact,coset       99.0 +- 0.3   99.0 +- 0.3

An exact network whose head pools over the slices knows the turned digits as well as the upright
ones, though it has seen none; each half alone does little. The other data sets were not trained
here.
"""

from configs import common

# data set: size in the paper, statistics, splits, network
VARIANTS = {
    "digits": {"size": 16, "statistics": "unit", "network": "p4resnet18"},
    "cifar10": {"size": 32, "statistics": "cifar", "network": "p4resnet44"},
    "cifar100": {"size": 32, "statistics": "cifar", "network": "p4resnet44"},
    "flowers102": {"size": 224, "statistics": "imagenet", "network": "p4resnet18"},
    "pcam": {"size": 96, "statistics": "pcam", "network": "pcam_p4resnet44"},
}
TFDS = {
    "cifar10": ("cifar10", "train", "test"),
    "cifar100": ("cifar100", "train", "test"),
    "flowers102": ("oxford_flowers102", "train+validation", "test"),
    "pcam": ("patch_camelyon", "train", "validation"),
}


def _views(config, variant: str, size: int, turned: bool = False) -> None:
    """Write the host pipes of a data set at a size."""
    resize = f"resize(({size}, {size}))"
    train, val = {
        "digits": (f"decode|{resize}|pad_crop(1)", f"decode|{resize}"),
        "cifar10": (f"decode|{resize}|pad_crop(4)|flip", f"decode|{resize}"),
        "cifar100": (f"decode|{resize}|pad_crop(4)|flip", f"decode|{resize}"),
        "flowers102": (
            f"decode|random_resized_crop({size}, scale=(0.08, 1.0))|flip",
            f"decode|resize(256)|center_crop({size})",
        ),
        "pcam": (f"decode|{resize}", f"decode|{resize}"),
    }[variant]
    config.train.views = (f"{train}|rotate90" if turned else train,)
    config.val.views = (val,)


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, digits."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    data = VARIANTS[variant]
    config = common.base()
    config.method = {"name": "supervised", "num_classes": None, "turns": 4}
    config.backbone = {"name": "gresnet", "architecture": data["network"], "head": ""}
    config.online.features = ()
    config.evals = {"turned": {}}
    config.show = ("loss", "accuracy", "val/turned/accuracy/*")

    if variant == "digits":
        train, val = ({"name": "digits", "split": split} for split in ("train", "test"))
        config.backbone.width = 4
    else:
        name, *splits = TFDS[variant]
        train, val = ({"name": "tfds", "dataset": name, "split": split} for split in splits)
    part = {"name": "subset", "source": train, "start": 0.0, "stop": 1.0, "seed": 1}
    normalise = (f"normalise('{data['statistics']}')",)
    config.train = common.train_set(part, (), normalise)
    config.val = common.held_out_set(val, (), normalise, batch_size=256)
    config.batch_size = 256 if variant != "digits" else 64
    config.total_epochs = 10
    config.optimizer = {
        "name": "adam",
        "learning_rate": 1e-3,
        "weight_decay": 1e-5,
        "schedule": "onecycle",
    }
    if variant == "pcam":
        config.batch_size = 32
        config.optimizer = {
            "name": "sgd",
            "learning_rate": 1e-3,
            "momentum": 0.9,
            "weight_decay": 1e-5,
            "schedule": "drops",
            "drops": tuple(epoch / 30 for epoch in (8, 16, 20, 24, 26, 28)),
            "factor": 0.75,
        }
    config.seed = 1
    config.eval_every_steps = 1000
    _views(config, variant, data["size"] + ("exact" in words), "turned" in words)
    for word in words:
        WORDS[word](config)
    return config


def _sized(config) -> None:
    """Read by `get_config`, which writes the pipes."""


def _coset(config) -> None:
    """An invariant head: the maximum over the slices first (the PCAM network has one already)."""
    if not config.backbone.architecture.startswith("pcam"):
        config.backbone.head = "coset_first"


def _paper(config) -> None:
    """The published budget: 200 epochs, of PCAM 30."""
    config.total_epochs = 30 if config.optimizer.name == "sgd" else 200
    config.eval_every_steps = 5 * 196


def _smoke(config) -> None:
    """Three steps of a narrow network on digits."""

    def shrink(config):
        config.backbone.width = 2
        config.backbone.architecture = "p4resnet18"
        for part, split in ((config.train, "train"), (config.val, "test")):
            digits = {"name": "digits", "split": split}
            part.source = {"name": "subset", "source": digits, "start": 0.0, "stop": 0.1, "seed": 1}
        _views(config, "digits", 16)
        config.val.batch_size = 8

    common.smoke(config, shrink)


WORDS = {"exact": _sized, "coset": _coset, "turned": _sized, "paper": _paper, "smoke": _smoke}
