"""What the representation of any checkpoint is good for: linear, fine-tuned, by its neighbours.

    python -m jaxequi.main --config=configs/linear.py --config.init_from=runs/NAME
    python -m jaxequi.main --config=configs/linear.py:airl,paper --config.init_from=runs/NAME
    python -m jaxequi.main --config=configs/linear.py:finetune,10percent --config.init_from=...
    python -m jaxequi.main --config=configs/linear.py:mae_finetune,large,paper ...
    python -m jaxequi.main --config=configs/linear.py:knn --config.init_from=runs/NAME
    python -m jaxequi.report runs/NAME runs/linear-... runs/linear-finetune-...   # side by side

Variants:

    linear            a linear layer on features computed once, kept beside the checkpoint: Adam
    airl              the same as megvii-research/revisitAIRL, `linear_eval.py`; its `--cls-bn` is
                      --config.method.batch_norm=behind
    airl_large_norm   its `--large-norm-config`, for what LARS trained; its loader's batch of 256 is
                      --config.batch_size=256
    moco              facebookresearch/moco, `main_lincls.py`
    simsiam           facebookresearch/simsiam, `main_lincls.py --lars`
    mae               facebookresearch/mae, `main_linprobe.py`: BatchNorm before the layer
    finetune          the whole network learns on, with a new linear layer
    mae_finetune      facebookresearch/mae, `main_finetune.py`: of a vision transformer
    knn               nearest neighbours and rank; nothing is learned

Network and data are the checkpoint's; its own augmentations are left behind. Other data of the
same kind of images: --config.train.source="folder(root='DIR/train')" and the same for `val`. The
moving average of a method that keeps one: --config.init_encoder=target.

`mae_finetune` on the class token: --config.backbone_changes.pool=token; at 448 pixels what learned
at 224: --config.backbone_changes.position_grid=14, the side of its grid of patches.

Words: `1percent` and `10percent` learn from that share of the examples, drawn once, equally many of
each class, as are SimCLR's lists of ImageNet; `large` and `huge` are the sizes of the networks of
`mae` and `mae_finetune`, which differ in their schedules; `smoke` takes seconds. `paper` is the
published experiment on ImageNet: batch, epochs, crops, an evaluation every so many epochs, and the
best of them kept. With `finetune` it is that of SimCLR (Chen et al., ICML 2020, appendix B.5),
which asks for `1percent` or `10percent`. Published rates are for a batch of 256, and scaled with
it; where the reference's loader keeps a last smaller batch (MoCo), ours leaves it out.

Measured on two CPU cores, 2026-11-27, seed 0: configs/sie.py:VARIANT with --config.total_steps=300
(60 held-out objects of 12 classes in 50 views; chance is 8 %), and the classifier of
configs/classification.py:digits,exact,coset (359 test digits). `linear` and `knn` as they stand,
`finetune` with --config.total_epochs=20, which takes one view of each object. Rank is RankMe's.

                     linear top-1   kNN    fine-tuned top-1   rank
    sie                  0.53       0.66        0.55           47
    vicreg               0.84       0.89        0.68           55
    simclr               0.75       0.81        0.62           55
    supervised           0.98       0.99        0.99           13

So short a fine-tuning of so few objects (240) forgets more than it learns; and after 300 of its
1200 steps SIE is far from done.

The protocols as they stand, on checkpoints of the embedded defaults (1438 digits to learn from,
359 to judge by; the same date and cores; top-1):

                  linear  airl  airl_large_norm  moco  simsiam  mae   kNN
    byol           0.86   0.90       0.88        0.90   0.89    0.89  0.72
    byol:lars      0.94   0.94       0.95        0.95   0.94    0.95  0.85
    mae            0.76   0.86       0.83        0.86   0.78    0.91  0.73

Adam's 300 epochs are not the end of its way; on MAE's features, of which few directions are used
(rank 6), BatchNorm before the layer is worth 0.05.
"""

from typing import Any, NamedTuple

import ml_collections

from configs import common
from jaxequi.data import recipes

HEAD = {"name": "linear", "heads": {"classification": ("linear",)}}
TOP1 = "val/heads/top1/classification-all-linear"
SGD = {"name": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
DROPS = {"schedule": "drops", "drops": (0.6, 0.8)}


class Protocol(NamedTuple):
    """A published linear evaluation.

    Attributes:
      method: what it says of `methods/linear.py`.
      optimizer: of the head.
      epochs: of the run.
      batch_size: of the published run.
      every: epochs between two evaluations.
      short_lr: base_lr of the embedded default in place of the published one, with which layer-wise
        rates go a part in a thousand of their way in so few steps.
      shown: what the published run shows to train on, and to judge by.
    """

    method: dict[str, Any]
    optimizer: dict[str, Any]
    epochs: int
    batch_size: int
    every: int
    short_lr: float | None = None
    shown: tuple[recipes.Recipe, recipes.Recipe] = (recipes.imagenet(), recipes.imagenet_eval())


LINEAR = {
    "airl": Protocol(
        {"batch_norm": "", "norm_groups": 1, "head_std": None},
        {**SGD, "base_lr": 30.0, **DROPS},
        epochs=100,
        batch_size=256,
        every=20,
    ),
    "airl_large_norm": Protocol(
        {"batch_norm": "", "norm_groups": 1, "head_std": None},
        {**SGD, "learning_rate": 0.2, "nesterov": True, "schedule": "cosine"},
        epochs=80,
        batch_size=1024,
        every=20,
    ),
    "moco": Protocol(
        {"batch_norm": "", "head_std": 0.01},
        {**SGD, "base_lr": 30.0, **DROPS},
        epochs=100,
        batch_size=256,
        every=1,
    ),
    "simsiam": Protocol(
        {"batch_norm": "", "head_std": 0.01},
        # The rate changes from epoch to epoch.
        {**SGD, "name": "larc", "base_lr": 0.1, "schedule": "cosine", "pieces": 90},
        epochs=90,
        batch_size=4096,
        every=1,
        short_lr=25.6,
    ),
    "mae": Protocol(
        {"batch_norm": "before", "norm_epsilon": 1e-6, "norm_groups": 1, "head_std": 0.01},
        {**SGD, "name": "lars_mocov3", "base_lr": 0.1, "schedule": "cosine"},
        epochs=90,
        batch_size=16384,
        every=1,
        short_lr=25.6,
        shown=(recipes.mae_linear(), recipes.mae_eval()),
    ),
}
VARIANTS = dict.fromkeys(("linear", *LINEAR, "finetune", "mae_finetune", "knn"))
WORKERS = 32  # of MAE's probe, whose norm sees 512 examples each
IMAGENET = 1_281_167  # examples


class Size(NamedTuple):
    """What MAE's schedules make of the size of a network, and its published top-1."""

    probe_epochs: int
    epochs: int
    base_lr: float
    layer_decay: float
    drop_path: float
    probed: float
    tuned: float


# Top-1 on ImageNet by the code of facebookresearch/mae, its README and FINETUNE.md.
SIZES = {
    "base": Size(90, 100, 5e-4, 0.65, 0.1, probed=0.678, tuned=0.836),
    "large": Size(50, 50, 1e-3, 0.75, 0.2, probed=0.760, tuned=0.859),
    "huge": Size(50, 50, 1e-3, 0.75, 0.3, probed=0.772, tuned=0.869),
}
SHARES = {"1percent": 0.01, "10percent": 0.1}


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, `linear`."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    empty = ml_collections.config_dict.placeholder
    config = common.base()
    config.online.features = ()
    config.backbone = empty(dict)
    config.train = common.train_set(empty(str), empty(tuple), empty(tuple))
    config.val = common.held_out_set(empty(str), empty(tuple), empty(tuple), batch_size=64)
    config.batch_size = 64
    config.eval_every_steps = 1_000_000  # at the end: nothing is selected on the held-out set
    size = SIZES[next((word for word in words if word in SIZES), "base")]
    if variant == "finetune":
        _finetune(config)
    elif variant == "mae_finetune":
        _mae_finetune(config, size)
    else:
        _frozen(config, variant)
    told = [variant, *(word for word in words if word != "smoke")]
    if len(told) > 1 or variant not in ("linear", "finetune", "knn"):
        config.protocol = " ".join(told)
    if variant == "mae":
        config.total_epochs = size.probe_epochs
        config.optimizer.warmup_part = 10 / size.probe_epochs
    for share in (SHARES[word] for word in words if word in SHARES):
        if variant == "knn":
            raise ValueError("1percent, 10percent: knn learns nothing; leave the word out")
        config.train.share = share
        config.batch_size = 8  # the embedded sets are small
        if "knn" in config.evals:
            del config.evals["knn"]  # among so few there is hardly a neighbour
    for word in words:
        WORDS[word](config, variant)
    if {*words} - {*SIZES} == {"paper"} and variant in ("mae", "mae_finetune"):
        config.published = {"top-1": size.probed if variant == "mae" else size.tuned}
    return config


def _frozen(config, variant: str) -> None:
    """Features of all views are computed once; what learns is the head, if any."""
    config.cache.on = True
    config.fresh = "^params/|^extra/batch_stats/"
    config.val.num_views = -1  # every stored view is judged
    config.evals = {"heads": {}, "knn": common.knn(20), "rank": {}}
    config.show = ("loss", "top1/*", "val/*/top1*")
    if variant == "knn":
        config.method = {"name": "linear", "heads": {}}
        config.total_steps = 0
        config.optimizer = {"name": "sgd", "learning_rate": 0.0}
        del config.evals["heads"]
        config.show = ("val/*",)
    elif variant == "linear":
        config.method = HEAD
        config.total_epochs = 300
        config.optimizer = {"name": "adam", "learning_rate": 1e-3, "weight_decay": 0.0}
    else:
        protocol = LINEAR[variant]
        config.method = {**HEAD, "parts": ("all",), **protocol.method}
        config.total_epochs = protocol.epochs
        config.optimizer = protocol.optimizer
        if protocol.short_lr is not None:
            config.optimizer.base_lr = protocol.short_lr


def _finetune(config) -> None:
    config.method = {"name": "supervised", "num_classes": None, "turns": 1, "head_std": None}
    config.fresh = "^params/classifier/"
    config.total_epochs = 100
    config.optimizer = {
        "name": "adam",
        "learning_rate": 3e-4,
        "weight_decay": 0.0,
        "schedule": "cosine",
        # The new layer has further to go than what it is laid on.
        "scales": (("^classifier/", 10.0),),
    }
    config.evals = {"classification": {}, "knn": common.knn(20)}
    config.show = ("loss", "accuracy", "val/*/top1")


def _mae_finetune(config, size: Size) -> None:
    """Mean of the patches, learned positions, layer decay, stochastic depth, mixed examples."""
    _finetune(config)
    config.method.head_std = 2e-5
    config.backbone_changes = {
        "pool": "mean",
        "positions": "learned",
        "position_grid": 0,
        "drop_path": size.drop_path,
    }
    config.fresh = "^params/classifier/|/fc_norm/|/pos_embed$"
    config.train.mix = recipes.MAE_MIX
    config.total_epochs = size.epochs
    config.optimizer = {
        "name": "adamw",
        "base_lr": size.base_lr,
        "betas": (0.9, 0.999),
        "weight_decay": 0.05,
        "no_decay": "(bias|scale|pos_embed|cls_token)$",
        "layer_decay": size.layer_decay,
        "schedule": "cosine",
        "warmup_part": 5 / size.epochs,
        "end": 1e-6,
    }


def _shared(config, variant: str) -> None:
    """Read by `get_config`."""
    del config, variant


def _sized(config, variant: str) -> None:
    """Read by `get_config`."""
    del config
    if variant not in ("mae", "mae_finetune"):
        raise ValueError(f"large, huge: sizes of mae and mae_finetune, not of {variant}")


def _paper(config, variant: str) -> None:
    """The published experiment."""
    share = config.train.get("share") or 1.0
    best, every = "val/classification/top1", 1
    shown = recipes.imagenet(), recipes.imagenet_eval()
    if variant in LINEAR:
        protocol = LINEAR[variant]
        best, every, shown = TOP1, protocol.every, protocol.shown
        config.batch_size = protocol.batch_size
        if protocol.short_lr is not None:
            config.optimizer.base_lr = protocol.optimizer["base_lr"]
        if variant == "mae":
            config.method.norm_groups = WORKERS
    elif variant == "mae_finetune":
        config.batch_size, shown = 1024, (recipes.mae_finetune(), recipes.mae_eval())
    elif variant == "finetune" and share < 1:
        config.batch_size = 4096
        config.total_epochs = 60 if share < 0.1 else 30
        nesterov = {**SGD, "nesterov": True, "base_lr": 0.05, "schedule": "cosine"}
        config.optimizer = {**nesterov, "scales": ()}
    else:
        more = " with 1percent or 10percent" if variant == "finetune" else ""
        raise ValueError(
            f"paper: nothing is published of {variant}; it is of a protocol, {OF}{more}"
        )
    config.cache.on = False
    config.train.views, config.train.augment = shown[0].views, shown[0].augment
    config.val.views, config.val.augment = shown[1].views, shown[1].augment
    config.train.eval_examples = 100_000  # neighbours of kNN
    config.val.batch_size = 256
    if "knn" in config.evals:
        config.evals.knn = common.knn(200)
    config.best = best
    steps = int(share * IMAGENET) // config.batch_size
    config.eval_every_steps = config.save_every_steps = every * steps


OF = ", ".join((*LINEAR, "mae_finetune", "finetune"))


def _smoke(config, variant: str) -> None:
    """Three steps."""

    def shrink(config):
        if "knn" in config.evals:
            config.evals.knn.k = 5
        if "pieces" in config.optimizer:
            config.optimizer.pieces = 0
        if "norm_groups" in config.method:
            config.method.norm_groups = 1

    common.smoke(config, shrink)
    if variant == "knn":
        config.total_steps = 0


WORDS = {
    "1percent": _shared,
    "10percent": _shared,
    "large": _sized,
    "huge": _sized,
    "paper": _paper,
    "smoke": _smoke,
}
