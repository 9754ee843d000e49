"""BYOL: a network predicts what its own moving average sees in another view.

Grill et al., NeurIPS 2020, arXiv 2006.07733; as in Huang et al., ECCV 2022, arXiv 2208.00275.
megvii-research/revisitAIRL, `exp/byol.py`, `exp/byol_based/byol_lars.py`.

    python -m jaxequi.main --config=configs/byol.py                # on scikit-learn's digits
    python -m jaxequi.main --config=configs/byol.py:lars
    python -m jaxequi.main --config=configs/byol.py:sgd,paper \\
        --config.train.source.root=DIR/train --config.val.source.root=DIR/val
    python -m jaxequi.main --config=configs/linear.py --config.init_from=RUN

Variants: `sgd` (the default) and `lars`. Words: `paper` is ImageNet, ResNet-50, batch 256 (LARS
4096), 200 epochs; `smoke` takes seconds. BatchNorm sees the whole batch.
"""

from configs import common
from jaxequi.data import recipes

VARIANTS = {"sgd": {}, "lars": {}}
METHOD = {
    "name": "byol",
    "projector": "4096-256",
    "predictor": "4096-256",
    "momentum": 0.99,
    "momentum_schedule": "cosine",
}
EPOCH = 5004  # steps: of ImageNet in batches of 256
LARS = {"weight_decay": 1e-6, "no_decay": "(bias|scale)$"}


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, SGD."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    config = common.base()
    config.method = {**METHOD, "projector": "128-64", "predictor": "128-64"}
    common.small_ssl(config, "momentum")
    common.digits(config, views=2)
    config.optimizer = {
        "name": variant,
        "base_lr": 4.0 if variant == "lars" else 0.3,
        "momentum": 0.9,
        "schedule": "cosine",
        "warmup_steps": 44,
        "warmup_from": 1e-6,
        **(LARS if variant == "lars" else {"weight_decay": 1e-4}),
    }
    common.online_classifier(config, 0.3)
    for word in words:
        WORDS[word](config, variant)
    return config


def _paper(config, variant: str) -> None:
    """The published experiment."""
    config.backbone = {"name": "torchvision_resnet", "architecture": "resnet50"}
    config.method = METHOD
    common.imagenet(config, *recipes.byol()[:2])
    config.batch_size = 4096 if variant == "lars" else 256
    steps = EPOCH * 256 // config.batch_size
    config.total_epochs = 200
    config.evals.knn = common.knn(200)
    config.online.last_view = True
    config.dtype = "bfloat16"
    config.optimizer.base_lr = 0.03
    config.optimizer.warmup_steps = 10 * steps
    if variant == "lars":
        common.lars_rates(config)
        common.online_classifier(config, 0.2, schedule="cosine")
    else:
        common.online_classifier(config, 30.0, schedule="drops", drops=(0.3, 0.4))
    config.log_every_steps = 50
    config.eval_every_steps = config.save_every_steps = 5 * steps


def _smoke(config, variant: str) -> None:
    """Three steps of narrow networks."""
    del variant

    def shrink(config):
        config.method.projector = config.method.predictor = "16-8"

    common.smoke_ssl(config, 2, shrink)


WORDS = {"paper": _paper, "smoke": _smoke}
