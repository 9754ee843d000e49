"""Linear evaluation and kNN of a checkpoint of IP-IRM, as published and clean.

Wangt-CN/IP-IRM, `linear.py`, and `test` of `main.py`.

    python -m jaxequi.main --config=configs/ipirm_linear.py --config.init_from=RUN
    python -m jaxequi.main --config=configs/ipirm_linear.py:published,paper --config.init_from=RUN

Variants:

    published   a linear layer on features of training crops, while the frozen network stands in
                training mode: features are normalised with the statistics of their batch, and the
                running statistics, with which the test set is judged, drift. Of STL-10 it learns
                from crops of 32 pixels and is judged on 96. Judged after every epoch.
    clean       the same layer and schedule on features of whole images in evaluation mode,
                computed once; judged at the end
    knn         200 neighbours with the temperature of the training; nothing is learned

Words: `paper` is STL-10, `cifar100` CIFAR-100, both with batch 512 and 100 epochs, as without them,
on the digits; `smoke` takes seconds. An epoch is of whole batches (theirs ends with a short one).

Measured on `ipirm`'s digits (configs/ipirm.py, seed 0, 2026-11-27): `published` 0.875 after its
last epoch.
"""

import ml_collections

from configs import common
from jaxequi.data import recipes

VARIANTS = {"published": ("linear",), "clean": ("linear",), "knn": ()}


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, the published protocol."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    kinds = VARIANTS[variant]
    config = common.base()
    heads = {"classification": kinds} if kinds else {}
    config.method = {"name": "linear", "heads": heads, "drift": variant == "published"}
    config.backbone = ml_collections.config_dict.placeholder(dict)
    config.online.features = ()
    config.cache.on = variant != "published"
    config.fresh = "^params/"  # the head is all that learns
    common.digits(config, views=2)
    config.train.views = config.train.views[:1]
    config.batch_size = 512
    config.total_epochs = 100 if kinds else 0
    config.optimizer = {"name": "adam", "learning_rate": 1e-3, "weight_decay": 1e-6}
    config.evals = {"heads": {}} if kinds else {"knn": {"k": 200, "temperature": 0.5}}
    config.show = ("loss", "top1/*", "val/*/top1*")
    _every_epoch(config, variant, 1437)
    for word in words:
        WORDS[word](config, variant)
    return config


def _every_epoch(config, variant: str, examples: int) -> None:
    steps = examples // config.batch_size
    config.log_every_steps = config.save_every_steps = steps
    config.eval_every_steps = steps if variant == "published" else 100 * steps


def _data(config, variant: str, dataset: str, examples: int) -> None:
    """The labelled data, shown as published."""
    source = {"name": "tfds", "dataset": dataset}
    learnt, shown = recipes.ipirm(), recipes.ipirm_eval()
    config.train = common.train_set({**source, "split": "train"}, learnt.views[:1], learnt.augment)
    config.val = common.held_out_set({**source, "split": "test"}, shown.views, shown.augment, 512)
    config.seed = 1234
    _every_epoch(config, variant, examples)


def _paper(config, variant: str) -> None:
    """STL-10."""
    _data(config, variant, "stl10", 5_000)


def _cifar100(config, variant: str) -> None:
    """CIFAR-100."""
    _data(config, variant, "cifar100", 50_000)


def _smoke(config, variant: str) -> None:
    """Three steps."""

    def shrink(config):
        common.digits(config, views=2)
        config.train.views = config.train.views[:1]
        config.val.batch_size = 8
        config.train.eval_examples = config.val.eval_examples = 16
        if variant == "knn":
            config.evals.knn.k = 5

    common.smoke(config, shrink)
    if variant == "knn":
        config.total_steps = 0


WORDS = {"paper": _paper, "cifar100": _cifar100, "smoke": _smoke}
