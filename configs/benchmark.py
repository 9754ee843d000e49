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

Rows: `moco_X` is configs/moco.py:X (`moco_v2` its `v2`, not its `moco_v2`), and `byol`,
`byol_lars`, `simsiam`, `mae`, `simclr`, `vicreg` and, with all labels from the start, `supervised`.
Words: `fashion` learns from a fifth of Fashion-MNIST's training images and tests on its test
images, IDX files in the folder fashion-mnist (elsewhere: --config.turned.source.source.path=DIR);
`c1` (plain), `c4`, `c8` and `d8` are steerable ResNet-10 over that group at 33 pixels, all of about
210,000 parameters, which learn in 500 steps; `vit`, `vit_narrow`, `octic` and `octic_hybrid` are
vision transformers of 6 blocks; with either, the class alone is asked. `smoke` takes seconds.

Measured with `fashion` on two shared CPU cores, 2026-11-27, seeds 0, 1, 2: mean and
standard deviation of the top-1 of 10,000 test images, in %. 12,000 images at 16 pixels, 1000 steps
of 64, ResNet-10 of width 16 (MAE: 4 blocks of width 64). `1 %` are 12 labels of each class;
of `sides` a guess is right in 25 %. Milliseconds a step, the best of three runs, are a rough guide;
memory is that of a step.

                        linear        kNN           1 %           sides         rank   ms   MiB
    moco_v1             78.6 ± 0.2    77.8 ± 0.9    72.5 ± 1.1    84.2 ± 0.8      43   19    13
    moco_v2             78.9 ± 0.3    77.9 ± 0.1    70.3 ± 1.6    84.1 ± 0.4      47   18    14
    moco_v2plus         77.9 ± 0.3    78.1 ± 0.5    70.6 ± 0.5    84.0 ± 0.6      33   30    23
    moco_v2plus_symmlp  78.0 ± 0.3    77.7 ± 0.2    71.6 ± 0.5    83.9 ± 0.6      33   27    23
    moco_v2plus_lars    79.9 ± 0.3    78.7 ± 0.3    72.9 ± 0.1    85.2 ± 0.6      35   29    23
    byol                75.8 ± 0.3    75.5 ± 0.8    67.4 ± 1.8    82.7 ± 0.4      32   29    23
    byol_lars           79.1 ± 1.2    78.6 ± 1.0    71.6 ± 1.4    85.3 ± 1.2      35   30    22
    simsiam             75.4 ± 0.5    75.1 ± 0.8    69.5 ± 0.5    79.0 ± 1.4      34   23    21
    mae                 76.1 ± 0.3    76.0 ± 0.6    66.2 ± 1.2    81.1 ± 1.9      16   18    23
    simclr              79.8 ± 0.3    79.0 ± 0.3    72.2 ± 0.4    84.7 ± 0.5      46   28    22
    vicreg              78.9 ± 0.6    78.6 ± 0.6    72.8 ± 0.6    83.1 ± 1.3      38   29    22
    supervised          84.0 ± 0.3    83.9 ± 0.1    77.4 ± 0.3    86.6 ± 0.8      46   15    13

What the papers say, and what is seen here. MoCo v2 is said to be below v2+, BYOL and S-MoCo v2+:
*not held*, in so few steps it is above them all. LARS trains v2+ and BYOL to more linear accuracy
than SGD. Weights of LARS brought to the norms of SGD (NormRescale) should be as good under the
protocol for SGD as they were: *not held*. Linear accuracy by `configs/linear.py:airl` (20 epochs of
256; BYOL: seeds 0 and 1):

    v2+   SGD 77.4 ± 0.4, LARS 79.0 ± 0.6, LARS with the norms of SGD 74.3 ± 2.1
    BYOL  SGD 75.6 ± 0.4, LARS 79.1 ± 0.0, LARS with the norms of SGD 75.0 ± 0.2

Soft equivariance (--config.before.pretrain.soft_equivariance.weight=1 and .layer=layer2_0, three
seeds) helps where images are turned: kNN of SimCLR 23.1 ± 1.2 to 25.7 ± 1.3 and of BYOL 20.2 ± 0.5
to 21.4 ± 1.4, linear 21.0 ± 0.6 to 21.9 ± 0.5 and 19.1 ± 0.3 to 21.6 ± 0.5. It does not upright
(linear 79.8 ± 0.3 to 79.6 ± 0.2, and 75.8 ± 0.3 to 74.2 ± 0.7), and it does not make more of which
side is up (84.7 ± 0.5 to 84.3 ± 0.0, and 82.7 ± 0.4 to 79.8 ± 2.9).

Over groups, learned from upright images (`supervised,fashion,c1` and so on), top-1 of the test
images upright and each at an angle of its own; a guess is right in 10 %. Three seeds,
2026-11-27 and 28:

                        linear        kNN           turned: linear    kNN           rank
    supervised c1       85.7 ± 0.3    85.4 ± 0.2    22.2 ± 0.4        24.1 ± 0.4      39
    supervised c4       84.7 ± 0.4    85.3 ± 0.5    42.9 ± 3.2        42.5 ± 2.7      25
    supervised c8       84.0 ± 0.2    84.6 ± 0.3    44.7 ± 0.6        43.5 ± 0.7      19
    supervised d8       84.2 ± 0.4    84.8 ± 0.3    41.7 ± 2.0        39.3 ± 1.6      14
    simclr c1           81.7 ± 0.5    80.4 ± 0.5    22.6 ± 0.5        25.7 ± 1.1     41
    simclr c4           78.2 ± 0.2    78.8 ± 0.2    42.5 ± 1.1        44.8 ± 0.3     20
    simclr c8           76.9 ± 0.7    78.6 ± 0.2    38.4 ± 1.5        39.1 ± 1.0     15
    simclr d8           75.0 ± 0.7    77.9 ± 0.7    40.4 ± 1.6        38.8 ± 0.2     11
    byol c1             81.0 ± 0.5    79.5 ± 0.2    21.9 ± 0.4        24.8 ± 1.0     37
    byol c4             74.2 ± 0.6    74.9 ± 0.4    39.4 ± 1.1        42.5 ± 0.6     16
    byol c8             72.9 ± 0.7    75.4 ± 0.7    42.9 ± 2.1        43.7 ± 2.9     12
    byol d8             68.2 ± 1.6    72.2 ± 1.6    43.6 ± 0.4        44.3 ± 2.4      8

One to two points upright are what a group costs where labels teach, and three to thirteen where
none do; it doubles what is known of turned images. C4 already has nearly all of that: with five
strides on 33 pixels a network of C8 is exact for quarter turns alone, and D8 gives nothing more.

Vision transformers of 6 blocks of width 128 (`vit_narrow`: 64, as many operations as `octic`), all
labels, 1000 steps, three seeds, 2026-11-28. `octic` has all blocks over D4 and is invariant,
`octic_hybrid` half of them, then plain ones; 1.2 M parameters, 0.3, 0.15 and 0.67 M.

                        linear        kNN           turned: linear    kNN           rank
    vit                 78.3 ± 0.1    77.8 ± 0.4    21.9 ± 1.1        22.8 ± 1.6     25
    vit_narrow          78.4 ± 0.9    78.9 ± 0.1    22.1 ± 0.3        22.3 ± 0.1     21
    octic               78.1 ± 0.9    78.6 ± 0.8    35.5 ± 1.9        34.5 ± 1.4     42
    octic_hybrid        81.0 ± 0.2    81.2 ± 0.3    20.2 ± 1.7        22.0 ± 0.5     43

With an eighth of the parameters and a quarter of the operations octic loses nothing upright that
three seeds could show, and knows half as much again of turned images; the hybrid is the best
upright by 2.6 points, without a law at its end.
"""

import ml_collections

from configs import byol, common, linear, mae, moco, sie, simsiam

# The config file that has the row, and its variant there; or the method, which learns by Adam.
MOCO = ("v2", "v1", "v2plus", "v2plus_symmlp", "v2plus_lars")
VARIANTS = {
    **{f"moco_{name}": (moco, name) for name in MOCO},
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
VIT = {"patch": 4, "width": 128, "depth": 6, "heads": 4}
VITS = {
    "vit": {"name": "vit", **VIT},
    "vit_narrow": {"name": "vit", **VIT, "width": 64},
    "octic": {"name": "octic_vit", **VIT, "symmetric": 6, "invariant": True},
    "octic_hybrid": {"name": "octic_vit", **VIT, "symmetric": 3},
}
NETWORKS = (*GROUPS, *VITS)
STEPS, GROUP_STEPS = 1000, 500


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
    if _networks(words):
        del config.before.finetune, config.before.turns
        config.compare = ()
    return config


def _networks(words: list[str]) -> list[str]:
    return [word for word in words if word in NETWORKS]


def _linear() -> ml_collections.ConfigDict:
    """Linear evaluation on stored features."""
    config = linear.get_config("linear")
    config.total_steps, config.total_epochs = 2 * STEPS, None
    config.batch_size, config.optimizer.learning_rate = 256, 1e-2
    return config


def _pretrain(variant: str, words: list[str]) -> ml_collections.ConfigDict:
    """The run that learns the representation."""
    smoke, networks = "smoke" in words, _networks(words)
    if isinstance(VARIANTS[variant], tuple):
        file, name = VARIANTS[variant]
        config = file.get_config(f"{name},smoke" if smoke else name)
    else:
        config = _by_adam(VARIANTS[variant])
    if not smoke:
        steps = GROUP_STEPS if {*networks} & {*GROUPS} else STEPS
        config.total_steps, config.total_epochs = steps, None
        config.log_every_steps = 50
        config.eval_every_steps = config.save_every_steps = STEPS // 2
    if len(networks) > 1 or (networks and variant == "mae"):
        raise ValueError(
            f"{', '.join(networks)}: one network at most, and none for mae, which has its own"
        )
    for name in networks:
        if name in VITS:
            config.backbone = VITS[name]
        else:
            steerable = {"architecture": f"{name}resnet10", "width": GROUPS[name]}
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
    """Read while the config is made."""
    del config, variant


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
    if "architecture" in pretrain.backbone and "width" in pretrain.backbone:
        pretrain.backbone.width = 4
    for shown in (config.turned, config.before.turns.val):
        shown.eval_examples, shown.batch_size = pretrain.val.eval_examples, pretrain.val.batch_size


WORDS = {**dict.fromkeys(("fashion", *NETWORKS), _known), "smoke": _smoke}
