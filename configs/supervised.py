"""The supervised baseline of augmentation-invariant learning: a ResNet learns its classes.

Huang et al., ECCV 2022, arXiv 2208.00275; megvii-research/revisitAIRL, `exp/supervised.py`.

    python -m jaxequi.main --config=configs/supervised.py          # on scikit-learn's digits
    python -m jaxequi.main --config=configs/supervised.py:resnet50,paper \\
        --config.train.source.root=DIR/train --config.val.source.root=DIR/val
    python -m jaxequi.main --config=configs/linear.py:airl --config.init_from=RUN

The variant is `resnet50`; --config.backbone.architecture takes any network of torchvision's. Words:
`paper` is ImageNet, ResNet-50, batch 256, 200 epochs, an evaluation every 100; `smoke` takes
seconds. "Per-GPU" BatchNorm is `config.norm.groups=8` on any number of devices. Networks over
groups: configs/classification.py and configs/imagenet_p4.py.

Measured on the embedded digits (30 epochs, two CPU cores, 2026-11-27, seed 0; 359 test digits):
top-1 0.983, kNN 0.989.
"""

from configs import common
from jaxequi.data import recipes

VARIANTS = {"resnet50": {}}
EPOCH = 5004  # steps: of ImageNet in batches of 256


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, resnet50."""
    _, words = common.variant(arg, VARIANTS, WORDS)
    config = common.base()
    common.small_ssl(config, "accuracy")
    config.method = {"name": "supervised", "num_classes": None, "turns": 1}
    config.online.features = ()
    config.evals = {"classification": {}, "knn": common.knn(20), "rank": {}}
    config.show = ("loss", "accuracy", "val/*/top1*", "val/rank/*")
    config.norm.groups = 8
    common.digits(config, views=1)
    config.optimizer = {
        "name": "sgd",
        "base_lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 44,
        "warmup_from": 1e-6,
    }
    for word in words:
        WORDS[word](config)
    return config


def _paper(config) -> None:
    """The published experiment."""
    config.backbone = {"name": "torchvision_resnet", "architecture": "resnet50"}
    common.imagenet(config, *recipes.imagenet()[:2])
    config.batch_size = 256
    config.total_epochs = 200
    config.evals.knn = common.knn(200)
    config.dtype = "bfloat16"
    config.optimizer.warmup_steps = 10 * EPOCH
    config.log_every_steps = 50
    config.eval_every_steps = 100 * EPOCH
    config.save_every_steps = 5 * EPOCH


def _smoke(config) -> None:
    """Three steps of a narrow network."""

    def shrink(config):
        config.norm.groups = 4

    common.smoke_ssl(config, 1, shrink)


WORDS = {"paper": _paper, "smoke": _smoke}
