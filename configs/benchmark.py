"""Every method in small, learned and judged alike: one command a row of a table.

A run learns a representation without labels (`pretrain`), fine-tunes it with 1 % of them
(`finetune`), and asks the frozen network on stored features: which side of an image is up
(`turns`), and which class it is, by a linear layer and by nearest neighbours, with the test images
upright and (the set `turned`) each at an angle of its own. Its report has all of that, and many
runs join in one table:

    python -m jaxequi.main --config=configs/benchmark.py:byol            # scikit-learn's digits
    python -m jaxequi.main --config=configs/benchmark.py:byol,fashion --config.seed=1
    python -m jaxequi.main --config=configs/benchmark.py:simclr,fashion,c8
    python -m jaxequi.report runs/benchmark-*

Rows: those of configs/moco.py (`moco_v2`, ...), `byol`, `byol_lars`, `simsiam`, `mae`, `simclr`,
`vicreg` and, with all labels from the start, `supervised`. Words: `fashion` learns from a fifth of
Fashion-MNIST's training images and tests on its test images, IDX files in the folder fashion-mnist
(elsewhere: --config.turned.source.source.path=DIR); `c1`, `c4`, `c8` and `d8` are steerable
ResNet-18 over that group, all of about as many parameters; `smoke` takes seconds.
"""

import ml_collections

from configs import byol, common, linear, mae, moco, sie, simsiam

# The config file that has the row, and its variant there; or the method, which learns by Adam.
VARIANTS = {
    **{f"moco_{name}": (moco, name) for name in ("v2", "v1", "v2plus")},
    **{f"moco_{name}": (moco, name) for name in ("v2plus_symmlp", "v2plus_lars")},
    "byol": (byol, "sgd"),
    "byol_lars": (byol, "lars"),
    "simsiam": (simsiam, "simsiam"),
    "mae": (mae, "base"),
    "simclr": {**sie.VARIANTS["simclr"], "projector": "128-64"},
    "vicreg": {**sie.VARIANTS["vicreg"], "projector": "128-128", "batch_size": 64},
    "supervised": {"name": "supervised", "num_classes": None, "turns": 1},
}
GROUPS = {"c1": 16, "c4": 8, "c8": 6, "d8": 4}  # fields of the first stage
SIDE = 33  # pixels at which a steerable ResNet breaks no symmetry
STEPS = 1000


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, MoCo v2."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    config, turns = _linear(), _linear()
    finetune = linear.get_config("finetune,1percent")
    config.before = {"pretrain": _pretrain(variant, words), "finetune": finetune, "turns": turns}
    config.compare = ("finetune", "turns")
    for one in (config, finetune, turns):
        one.init_from = "before:pretrain"
    for one in config.before.values():
        one.seed = config.get_ref("seed")
    if "fashion" in words:
        _read(
            config, {"name": "arrays", "path": ml_collections.FieldReference("fashion-mnist")}, 0.2
        )
    else:
        _read(config, {"name": "digits"}, 1.0)
    config.evals = {
        "heads": {"sets": ("val", "turned")},
        "knn": common.knn(20),
        "knn_turned": {"name": "knn", "sets": ("train", "turned"), **common.knn(20)},
        "rank": {},
    }
    config.show = ("loss", "*/heads/top1/*", "*/knn*/top1", "val/rank/effective_rank")
    for word in words:
        WORDS[word](config, variant)
    return config


def _linear() -> ml_collections.ConfigDict:
    """Linear evaluation on stored features."""
    config = linear.get_config("linear")
    config.total_steps, config.total_epochs = 2 * STEPS, None
    config.batch_size, config.optimizer.learning_rate = 256, 1e-2
    return config


def _pretrain(variant: str, words: list[str]) -> ml_collections.ConfigDict:
    """The run that learns the representation."""
    smoke = "smoke" in words
    if isinstance(VARIANTS[variant], tuple):
        file, name = VARIANTS[variant]
        config = file.get_config(f"{name},smoke" if smoke else name)
    else:
        config = _by_adam(VARIANTS[variant])
    if not smoke:
        config.total_steps, config.total_epochs = STEPS, None
        config.log_every_steps = 50
        config.eval_every_steps = config.save_every_steps = STEPS // 2
    group = next((word for word in words if word in GROUPS), None)
    if group is not None:
        steerable = {"architecture": f"{group}resnet18", "width": GROUPS[group]}
        config.backbone = {"name": "steerable_resnet", **steerable}
        common.digits(config, len(config.train.views), SIDE)
    return config


def _by_adam(method: dict) -> ml_collections.ConfigDict:
    """Learn from the crops that the methods of two views have in common."""
    config = common.base()
    config.method = method
    common.small_ssl(config, "")
    common.digits(config, views=2)
    config.optimizer = {
        "name": "adam",
        "learning_rate": 2e-3,
        "weight_decay": 1e-6,
        "schedule": "cosine",
    }
    if method["name"] == "supervised":
        config.train.views = config.train.views[:1]
        config.online.features = ()
        config.evals = {"classification": {}, "knn": common.knn(20), "rank": {}}
    return config


def _read(config, source: dict, share: float) -> None:
    """Learn from a share of the training images, and test on all that are held out."""
    train, test = {**source, "split": "train"}, {**source, "split": "test"}
    if share < 1:
        train = {"name": "subset", "source": train, "stop": share}
    pretrain, turns = config.before.pretrain, config.before.turns
    pretrain.train.source, pretrain.val.source = train, test  # which the others read as well
    shown = {"views": pretrain.val.views, "augment": pretrain.val.augment, "batch_size": 250}
    turned = {"name": "rotated", "source": test, "seed": 0}
    config.turned = common.held_out_set(turned, **shown)
    asked = {"name": "rotated", "seed": 0, "quarters": True, "label": "turn"}
    turns.train = common.train_set({**asked, "source": train}, shown["views"], shown["augment"])
    turns.val = common.held_out_set({**asked, "source": test}, **shown)
    turns.evals = {"heads": {}}
    turns.protocol = "which side is up"


def _known(config, variant: str) -> None:
    """Read by `get_config`."""
    del config, variant


def _of_group(config, variant: str) -> None:
    """Read by `_pretrain`."""
    del config
    if variant == "mae":
        raise ValueError("mae learns by vision transformers; c1, c4, c8 and d8 are ResNets")


def _smoke(config, variant: str) -> None:
    """Three steps of every run."""
    del variant

    def shrink(config):
        for name in ("knn", "knn_turned"):
            if name in config.evals:
                config.evals[name].k = 5

    for one in (config, config.before.finetune, config.before.turns):
        common.smoke(one, shrink)
    pretrain = config.before.pretrain
    if pretrain.total_steps is None:
        common.smoke_ssl(pretrain, len(pretrain.train.views), shrink)
    if "width" in pretrain.backbone:
        pretrain.backbone.width = 4
    for shown in (config.turned, config.before.turns.val):
        shown.eval_examples, shown.batch_size = pretrain.val.eval_examples, pretrain.val.batch_size


WORDS = {"fashion": _known, **dict.fromkeys(GROUPS, _of_group), "smoke": _smoke}
