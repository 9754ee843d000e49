"""What the representation of any checkpoint is good for: linear, fine-tuned, by its neighbours.

    python -m jaxequi.main --config=configs/linear.py --config.init_from=runs/NAME
    python -m jaxequi.main --config=configs/linear.py:finetune --config.init_from=runs/NAME
    python -m jaxequi.main --config=configs/linear.py:knn --config.init_from=runs/NAME
    python -m jaxequi.report runs/NAME runs/linear-... runs/linear-finetune-...   # side by side

Variants:

    linear     a linear layer on features computed once, kept beside the checkpoint
    finetune   the whole network learns on, with a new linear layer
    knn        nearest neighbours and rank; nothing is learned

Network and data are the checkpoint's; its own augmentations are left behind. Other data of the
same kind of images: --config.train.source="folder(root='DIR/train')" and the same for `val`. The
moving average of a method that keeps one: --config.init_encoder=target. A share of the labels:
--config.train.source="subset(source={'name': ...}, stop=0.01)".

Words: `smoke` takes seconds.

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
"""

import ml_collections

from configs import common

VARIANTS = {
    "linear": {"method": {"name": "linear", "heads": {"classification": ("linear",)}}},
    "finetune": {"method": {"name": "supervised", "num_classes": None, "turns": 1}},
    "knn": {"method": {"name": "linear", "heads": {}}},
}


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, `linear`."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    empty = ml_collections.config_dict.placeholder
    config = common.base()
    config.method = VARIANTS[variant]["method"]
    config.online.features = ()
    config.backbone = empty(dict)
    config.train = common.train_set(empty(str), empty(tuple), empty(tuple))
    config.val = common.held_out_set(empty(str), empty(tuple), empty(tuple), batch_size=64)
    config.cache.on = variant != "finetune"
    if config.cache.on:
        config.val.num_views = -1  # every stored view is judged
    neighbours = {"knn": common.knn(20), "rank": {}}
    config.batch_size = 64
    config.eval_every_steps = 1_000_000  # at the end: nothing is selected on the held-out set
    if variant == "linear":
        config.total_epochs = 300
        config.optimizer = {"name": "adam", "learning_rate": 1e-3, "weight_decay": 0.0}
        config.evals = {"heads": {}, **neighbours}
        config.show = ("loss", "top1/*", "val/*/top1*")
    elif variant == "finetune":
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
    else:
        config.total_steps = 0
        config.optimizer = {"name": "sgd", "learning_rate": 0.0}
        config.evals = neighbours
        config.show = ("val/*",)
    for word in words:
        WORDS[word](config)
    return config


def _smoke(config) -> None:
    """Three steps."""
    learns = config.total_steps != 0

    def shrink(config):
        config.evals.knn.k = 5

    common.smoke(config, shrink)
    if not learns:
        config.total_steps = 0


WORDS = {"smoke": _smoke}
