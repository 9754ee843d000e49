"""Offline evaluations of a checkpoint: what can be read off a network that learns no more.

Garrido et al., ICML 2023, arXiv 2302.10283; facebookresearch/SIE, `eval_*.py`.

    python -m jaxequi.main --config=configs/evals.py --config.checkpoint=runs/NAME
    python -m jaxequi.main --config=configs/evals.py:sie_rotation,published --config.checkpoint=...
    python -m jaxequi.main --config=configs/evals.py:sie_predictor --config.checkpoint=...

Variants: `sie_all` (the default: everything that follows, in one pass over the data),
`sie_classification`, `sie_rotation`, `sie_color`, and `sie_predictor` (MRR, H@k, PRE).

Words after the variant: `linear` and `deep` choose the heads; `published` is the protocol of the
reference, in which the statistics of the frozen network drift while the heads learn; `paper` is
batch 256 and 300 epochs; `smoke` takes seconds. Without `published` the protocol is `clean`:
features of all views are computed once, kept beside the checkpoint and shared by all evaluations.

The reference's commands and ours:

    eval_classification.py                        sie_classification,published,paper
    eval_angle_prediction.py --deep-end           sie_rotation,published,paper
    eval_color_prediction.py --deep-end           sie_color,published,paper
    ... --equi-dims 256                           --config.parts="('equivariant',)"
    ... --equi-dims 256 --inv-part                --config.parts="('invariant',)"
    eval_MRR_Hk.py, eval_prediction_errors.py     sie_predictor
    ... --no-norm                                 --config.normalise=False
"""

import ml_collections

from configs import common

VARIANTS: dict[str, common.Change] = {
    "sie_all": {"tasks": ("classification", "rotation", "color")},
    "sie_classification": {"tasks": ("classification",), "predictor": False},
    "sie_rotation": {"tasks": ("rotation",), "predictor": False},
    "sie_color": {"tasks": ("color",), "predictor": False},
    # No head learns here: one step of nothing, then the scores.
    "sie_predictor": {"tasks": (), "predictor": True, "total_steps": 1, "total_epochs": None},
}


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, everything."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    config = common.base()
    config.checkpoint = ml_collections.config_dict.placeholder(str)  # folder of a run
    config.checkpoint_step = ml_collections.config_dict.placeholder(int)  # default: the newest
    config.root = ml_collections.config_dict.placeholder(str)  # of the data, if it has moved
    config.features = ml_collections.config_dict.placeholder(str)  # default: beside the checkpoint
    config.protocol = "clean"
    config.parts = ()  # of all, invariant, equivariant; (): those that the network has
    config.equi = ml_collections.config_dict.placeholder(int)  # its last dimensions are equivariant
    # As published; "euler" asks for the rotation as three angles.
    config.heads = {
        "classification": ("linear",),
        "rotation": ("deep",),
        "euler": ("deep",),
        "color": ("deep",),
    }
    # MRR, H@k and PRE; by default of methods that have a predictor
    config.predictor = ml_collections.config_dict.placeholder(bool)
    config.normalise = True  # compare directions; False: dot products
    config.source_view = True  # the view predicted from is a query and a candidate too
    config.modes = ("train-train", "val-val", "val-all")
    config.show = ("loss", "val/top1/*", "val/r2/*", "predictor/val-val/mrr")

    config.batch_size = 64
    config.total_epochs = 300
    config.optimizer = {"name": "adam", "learning_rate": 1e-3, "weight_decay": 0.0}
    config.log_every_steps = 100
    config.eval_every_steps = 1_000_000  # at the end; a last epoch counts, nothing is selected
    config.save_every_steps = 500

    common.lay(config, VARIANTS[variant])
    for word in words:
        WORDS[word](config)
    return config


def _paper(config) -> None:
    """The published schedule."""
    config.batch_size = 256
    if config.tasks:
        config.total_epochs = 300


def _published(config) -> None:
    """The reference's protocol."""
    config.protocol = "published"
    config.predictor = False


def _linear(config) -> None:
    """Linear heads for every task."""
    for task in config.heads:
        config.heads[task] = ("linear",)


def _deep(config) -> None:
    """Heads of three layers for every task."""
    for task in config.heads:
        config.heads[task] = ("deep",)


def _smoke(config) -> None:
    """Three steps."""
    common.smoke(config, lambda config: None)


WORDS = {
    "paper": _paper,
    "published": _published,
    "linear": _linear,
    "deep": _deep,
    "smoke": _smoke,
}
