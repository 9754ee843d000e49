"""SimSiam: two views, a predictor and a stopped gradient; nothing else keeps it from collapse.

Chen and He, CVPR 2021, arXiv 2011.10566; facebookresearch/simsiam, `main_simsiam.py`.

    python -m jaxequi.main --config=configs/simsiam.py             # on scikit-learn's digits
    python -m jaxequi.main --config=configs/simsiam.py:fix_pred_lr,paper \\
        --config.train.source.root=DIR/train --config.val.source.root=DIR/val

Variants: `simsiam` (the default); `fix_pred_lr`, whose predictor keeps its first learning rate, as
the released models. Words: `paper` is ImageNet, ResNet-50, batch 512, 100 epochs (published: 68.1 %
by linear evaluation); `smoke` takes seconds.
"""

from configs import common
from jaxequi.data import recipes

VARIANTS = {"simsiam": {}, "fix_pred_lr": {}}
SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, one schedule for all."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    config = common.base()
    config.method = {"name": "simsiam", "projector": "128-128-128", "predictor": "32-128"}
    common.small_ssl(config, "spread/embedding-view1")
    common.digits(config, views=2)
    config.optimizer = {**SGD, "base_lr": 0.4, "schedule": "cosine", "pieces": 0}
    common.online_classifier(config, 0.3)
    if variant == "fix_pred_lr":
        config.optimizer.groups.predictor = {**SGD, "match": "^predictor/", "base_lr": 0.4}
    for word in words:
        WORDS[word](config, variant)
    return config


def _paper(config, variant: str) -> None:
    """The published experiment."""
    network = {"name": "torchvision_resnet", "architecture": "resnet50"}
    config.backbone = {**network, "zero_init_residual": True}
    config.method.projector, config.method.predictor = "2048-2048-2048", "512-2048"
    common.imagenet(config, *recipes.moco_v2()[:2])
    config.train.order = "epochs"
    config.batch_size = 512
    config.total_epochs = 100
    config.evals.knn = common.knn(200)
    config.dtype = "bfloat16"
    config.optimizer.base_lr = 0.05
    config.optimizer.pieces = 100  # the rate changes from epoch to epoch
    if variant == "fix_pred_lr":
        config.optimizer.groups.predictor.base_lr = 0.05
    config.log_every_steps = 50
    config.eval_every_steps = config.save_every_steps = 5 * 2502


def _smoke(config, variant: str) -> None:
    """Three steps of narrow networks."""
    del variant

    def shrink(config):
        config.backbone = {**common.SMALL_RESNET, "width": 4}
        config.method.projector, config.method.predictor = "16-16-16", "4-16"
        config.dtype = "float32"
        common.digits(config, views=2)
        config.optimizer.pieces = 0
        config.val.batch_size = 8
        config.train.eval_examples = config.val.eval_examples = 16
        config.evals.knn.k = 5

    common.smoke(config, shrink)


WORDS = {"paper": _paper, "smoke": _smoke}
