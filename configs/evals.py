"""SIE's offline evaluations of a checkpoint: what can be read off a network that learns no more.

Garrido et al., ICML 2023, arXiv 2302.10283; facebookresearch/SIE, `eval_*.py`.

    python -m jaxequi.main --config=configs/evals.py --config.checkpoint=runs/NAME
    python -m jaxequi.main --config=configs/evals.py:sie_rotation,published --config.checkpoint=...
    python -m jaxequi.main --config=configs/evals.py:sie_predictor --config.checkpoint=...

Variants: `sie_all` (the default: everything that follows, in one pass over the data),
`sie_classification`, `sie_rotation`, `sie_euler`, `sie_orientation` (the pose of one view, which
others report), `sie_color`, `sie_predictor` (MRR, H@k, PRE).

Words after the variant: `linear` and `deep` choose the heads; `published` is the protocol of the
reference, in which the statistics of the frozen network drift while the heads learn; `paper` is
batch 256 and 300 epochs; `smoke` takes seconds. Without `published` the protocol is clean:
features of all views are computed once, kept beside the checkpoint and shared by all evaluations.

The reference's commands and ours:

    eval_classification.py                        sie_classification,published,paper
    eval_angle_prediction.py --deep-end           sie_rotation,published,paper
    eval_color_prediction.py --deep-end           sie_color,published,paper
    ... --equi-dims 256                           --config.parts="('equivariant',)"
    ... --equi-dims 256 --inv-part                --config.parts="('invariant',)"
    eval_MRR_Hk.py, eval_prediction_errors.py     sie_predictor
    ... --no-norm                                 --config.normalise=False

For a network that SIE knows nothing of (one view, no latents): configs/linear.py.
"""

from typing import Any

import ml_collections

from configs import common

DEEP, LINEAR = ("deep",), ("linear",)
# The heads as published; "euler" asks for the rotation as three angles.
CLASSIFICATION, ROTATION, COLOR = {"classification": LINEAR}, {"rotation": DEEP}, {"color": DEEP}
VARIANTS: dict[str, dict[str, Any]] = {
    "sie_all": {"heads": {**CLASSIFICATION, **ROTATION, **COLOR}, "predictor": "if any"},
    "sie_classification": {"heads": CLASSIFICATION},
    "sie_rotation": {"heads": ROTATION},
    "sie_euler": {"heads": {"euler": DEEP}},
    "sie_orientation": {"heads": {"orientation": DEEP}},
    "sie_color": {"heads": COLOR},
    "sie_predictor": {"heads": {}, "predictor": "always"},
}


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, everything."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    asked, empty = VARIANTS[variant], ml_collections.config_dict.placeholder
    config = common.base()
    config.checkpoint = empty(str)  # folder of a run
    config.init_from = config.get_ref("checkpoint")
    config.parts = ()  # of all, invariant, equivariant; (): those that the network has
    config.equi = empty(int)  # its last dimensions are equivariant; default: as it says itself
    config.normalise = True  # compare directions; False: dot products
    config.root = empty(str)  # of the data, if it has moved
    config.cache.on = True
    config.online.features = ()
    config.method = {
        "name": "linear",
        "heads": asked["heads"],
        "parts": config.get_ref("parts"),
        "equi": config.get_ref("equi"),
        "drift": False,
    }
    config.backbone = empty(dict)
    # The sets of the checkpoint, of each object two views to learn from and all to be judged by.
    for name in ("train", "val"):
        one = common.train_set if name == "train" else common.held_out_set
        size = {} if name == "train" else {"batch_size": 64}
        config[name] = one(empty(str), empty(tuple), empty(tuple), num_views=2, **size)
        config[name].root = config.get_ref("root")
    config.fresh = "^params/"  # the heads are all that learns
    config.evals = {"heads": {}} if asked["heads"] else {}
    if "predictor" in asked:
        optional = asked["predictor"] == "if any"
        compared = {"normalise": config.get_ref("normalise"), "optional": optional}
        config.evals.retrieval = {"sets": ("train", "val"), "source": True, **compared}
        modes = ("train-train", "val-val", "val-all")
        config.evals.prediction = {"modes": modes, **compared}
    config.show = ("loss", "val/heads/top1/*", "val/heads/r2/*", "val/retrieval/mrr")

    config.batch_size = 64
    config.total_epochs = 300 if asked["heads"] else 0
    config.optimizer = {"name": "adam", "learning_rate": 1e-3, "weight_decay": 0.0}
    config.log_every_steps = 100
    config.eval_every_steps = 1_000_000  # at the end; a last epoch counts, nothing is selected
    config.save_every_steps = 500
    for word in words:
        WORDS[word](config)
    return config


def _paper(config) -> None:
    """The published schedule."""
    config.batch_size = 256
    if config.method.heads:
        config.total_epochs = 300


def _published(config) -> None:
    """The reference's protocol: classes are told of one view, all else of one pair."""
    config.cache.on = False
    config.method.drift = True
    for evaluation in ("retrieval", "prediction"):
        if evaluation in config.evals:
            del config.evals[evaluation]
    views = {1 if task == "classification" else 2 for task in config.method.heads}
    if len(views) != 1:
        raise ValueError(
            "'published' with " + (" and ".join(config.method.heads) or "no heads") + ": classes "
            "are told of one view and all else of two, and statistics drift with every view; take "
            "one of sie_classification, sie_rotation, sie_color"
        )
    config.train.num_views = config.val.num_views = views.pop()


def _linear(config) -> None:
    """Linear heads for every task."""
    for task in config.method.heads:
        config.method.heads[task] = LINEAR


def _deep(config) -> None:
    """Heads of three layers for every task."""
    for task in config.method.heads:
        config.method.heads[task] = DEEP


def _smoke(config) -> None:
    """Three steps."""
    learns = bool(config.method.heads)
    common.smoke(config, lambda config: None)
    if not learns:
        config.total_steps = 0


WORDS = {
    "paper": _paper,
    "published": _published,
    "linear": _linear,
    "deep": _deep,
    "smoke": _smoke,
}
