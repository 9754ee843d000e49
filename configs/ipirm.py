"""IP-IRM: contrast inside the parts of the data in which it is least invariant, found in turn.

Wang, Yue, Huang, Sun, Zhang, NeurIPS 2021, arXiv 2110.15255; Wangt-CN/IP-IRM, `main.py`,
`main_mixup.py`, `runsh/`. It is also stage 1 of EqInv, ECCV 2022, arXiv 2207.12258.

    python -m jaxequi.main --config=configs/ipirm.py               # on scikit-learn's digits
    python -m jaxequi.main --config=configs/ipirm.py:simclr        # its baseline
    python -m jaxequi.main --config=configs/ipirm.py:ipirm,paper   # STL-10, docs/systems/eqinv.md
    python -m jaxequi.main --config=configs/ipirm.py:ipirm_mixup_set5,cifar100
    python -m jaxequi.main --config=configs/ipirm_linear.py --config.init_from=RUN

Variants: `ipirm` (the default) and its baselines `simclr` and `debiased`; `ipirm_mixup` and
`ipirm_mixup_set5`, which retains five partitions, and their baseline `mixup`.

Words: `paper` is the published run on STL-10, `cifar100` the one on CIFAR-100 (ResNet-50 without a
max-pool on crops of 32 pixels, batch 256, 400 epochs, a search every 50; stored by
`python -m jaxequi.prepare.tfds`); `vipriors` is stage 1 of EqInv on class folders of ImageNet, for
which no numbers are published: those of STL-10, on crops of 224 pixels; `smoke` takes seconds.

Theirs takes BatchNorm of each of two devices: --config.norm.groups=2.

Published, STL-10, linear evaluation after 400 epochs: IP-IRM 84.44 %, with mixtures 88.26 %.
Measured, the embedded default (two busy CPU cores, five minutes, 2026-11-27, seed 0), kNN top-1
after 30 epochs: `ipirm` 0.919, `simclr` 0.911, `debiased` 0.902, `mixup` 0.928, of 359 digits.
"""

from configs import common
from jaxequi.data import recipes

BASELINE = {"name": "ipirm", "partitions": 0, "temperature": 0.5}
SEARCH = {
    "weight": 0.5,
    "mode": "irm",
    "constraint": "relaxed",
    "normalize": True,
    "online": False,
    "mixup": False,
    "batch_size": 3096,
    "random_start": True,
    "learning_rate": 0.5,
    "milestones": (5, 35),
    "until": 50,
    "epochs": 60,
}
RETAINED = {
    "partitions": 8,  # of 400 epochs with a search every 50: all
    "every_epochs": 50,
    "keep_cont": True,
    "penalty_weight": 0.2,
    "penalty_from": 0,
    "penalty_schedule": "constant",
    "irm_temperature": 0.5,
    "search": SEARCH,
}
IPIRM = {**BASELINE, **RETAINED}
MIXUP_BASELINE = {"name": "ipirm_mixup", "partitions": 0, "temperature": 0.5, "alpha": 1.0}
MIXUP = {**MIXUP_BASELINE, **RETAINED, "temperature": 0.2, "one_by_one": True}
# On CIFAR-100 mixtures are searched on, online.
ONLINE = {
    **SEARCH,
    "online": True,
    "mixup": True,
    "batch_size": 2048,
    "learning_rate": 0.1,
    "milestones": (5, 25),
    "until": 25,
    "epochs": 30,
}
VARIANTS = {
    "ipirm": IPIRM,
    "simclr": BASELINE,
    "debiased": {**BASELINE, "prior": 0.1},
    "ipirm_mixup": MIXUP,
    "ipirm_mixup_set5": {**MIXUP, "partitions": 5},
    "mixup": MIXUP_BASELINE,
}
ADAM = {"name": "adam", "learning_rate": 1e-3, "weight_decay": 1e-6}


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, IP-IRM."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    config = common.base()
    config.method = {**VARIANTS[variant], "projector": "128-64"}
    common.small_ssl(config, "penalty_weight partition/*")
    common.digits(config, views=2)
    if config.method.partitions:
        config.method.partitions = 3
        config.method.every_epochs = 10
        if "mixup" in variant:
            config.method.one_by_one = False
    config.optimizer = ADAM
    common.online_classifier(config, 0.3)
    for word in words:
        WORDS[word](config, variant)
    return config


def _published(config, variant: str, sets: dict[str, str], examples: int) -> None:
    """The published experiment on the splits `train`, `memory` and `val` of a data set."""
    network = {"name": "torchvision_resnet", "architecture": "resnet50"}
    config.backbone = {**network, "stem": "small"}
    config.method = {**VARIANTS[variant], "projector": "512-128"}
    source = {name: {"name": "tfds", **given} for name, given in sets.items()}
    learnt, shown = recipes.ipirm(), recipes.ipirm_eval()
    config.train = common.train_set(source["train"], learnt.views, learnt.augment)
    for name in ("memory", "val"):
        config[name] = common.held_out_set(source[name], shown.views, shown.augment, 256)
    config.seed = 1234
    config.batch_size = 256
    config.total_epochs = 400
    # Neighbours vote with the temperature of the training.
    vote = {"k": 200, "temperature": config.method.temperature, "sets": ("memory", "val")}
    config.evals = {"knn": vote}
    config.online.features = ()  # most of STL-10 has no labels
    config.optimizer = ADAM
    config.log_every_steps = 50
    config.eval_every_steps = config.save_every_steps = 25 * (examples // 256)


def _paper(config, variant: str) -> None:
    """STL-10: 105,000 examples to learn from, 5,000 of them with labels."""
    splits = {"train": "train+unlabelled", "memory": "train", "val": "test"}
    sets = {name: {"dataset": "stl10", "split": split} for name, split in splits.items()}
    _published(config, variant, sets, 105_000)


def _cifar100(config, variant: str) -> None:
    """CIFAR-100, where IP-IRM searches with a lower weight, and mixtures online."""
    splits = {"train": "train", "memory": "train", "val": "test"}
    sets = {name: {"dataset": "cifar100", "split": split} for name, split in splits.items()}
    _published(config, variant, sets, 50_000)
    if config.method.partitions:
        online = "mixup" in variant
        config.method.search = ONLINE if online else {**SEARCH, "weight": 0.2}


def _vipriors(config, variant: str) -> None:
    """Few images of each class of ImageNet, in class folders."""
    config.backbone = {"name": "torchvision_resnet", "architecture": "resnet50"}
    config.method = {**VARIANTS[variant], "projector": "512-128"}
    recipe = recipes.moco_v2()
    common.imagenet(config, recipe.views, recipe.augment)
    config.train.order = "epochs"
    config.train.source.root, config.val.source.root = "imagenet_10/train", "imagenet_10/val"
    config.batch_size = 256
    config.total_epochs = 400
    config.evals = {"online": {}, "knn": common.knn(10)}
    config.optimizer = ADAM
    common.online_classifier(config, 0.3)
    config.log_every_steps = 39  # of the 10,000 images of ten a class: an epoch
    config.eval_every_steps = config.save_every_steps = 25 * 39


def _smoke(config, variant: str) -> None:
    """Three steps of narrow networks after a search of three epochs."""
    del variant

    def shrink(config):
        config.method.projector = "16-8"
        if config.method.partitions:
            config.method.partitions = 2
            config.method.search = {**config.method.search, "epochs": 2, "batch_size": 512}
        if "memory" in config:
            del config.memory
            config.evals.knn.sets = ("train", "val")

    common.smoke_ssl(config, 2, shrink)


WORDS = {"paper": _paper, "cifar100": _cifar100, "vipriors": _vipriors, "smoke": _smoke}
