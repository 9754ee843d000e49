"""Masked autoencoders: three quarters of the patches are hidden, and to be told from the rest.

He et al., CVPR 2022, arXiv 2111.06377; facebookresearch/mae, `main_pretrain.py`, PRETRAIN.md.

    python -m jaxequi.main --config=configs/mae.py                 # on scikit-learn's digits
    python -m jaxequi.main --config=configs/mae.py:large,paper \\
        --config.train.source.root=DIR/train --config.val.source.root=DIR/val
    python -m jaxequi.main --config=configs/linear.py --config.init_from=RUN

Variants are the sizes of the encoder: `base` (the default), `large`, `huge`. Words: `paper` is
ImageNet, batch 4096, 800 epochs, 40 of them warming up; `smoke` takes seconds.
"""

from configs import common
from jaxequi.data import recipes

VARIANTS = {"base": {}, "large": {}, "huge": {}}


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, the base size."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    config = common.base()
    common.small_ssl(config, "")
    config.method = {
        "name": "mae",
        "mask_ratio": 0.75,
        "normalize": True,
        "decoder_width": 32,
        "decoder_depth": 2,
        "decoder_heads": 4,
    }
    small = {"patch": 4, "width": 64, "depth": 4, "heads": 4}
    config.backbone = {"name": "vit", "architecture": variant, **small}
    common.digits(config, views=1)
    config.optimizer = {
        "name": "adamw",
        "base_lr": 4e-3,
        "betas": (0.9, 0.95),
        "weight_decay": 0.05,
        "no_decay": "(bias|scale)$",
        "schedule": "cosine",
        "warmup_steps": 44,
    }
    common.online_classifier(config, 0.3)
    for word in words:
        WORDS[word](config, variant)
    return config


def _paper(config, variant: str) -> None:
    """The published experiment."""
    config.backbone = {"name": "vit", "architecture": variant}
    config.method.decoder_width, config.method.decoder_depth = 512, 8
    config.method.decoder_heads = 16
    common.imagenet(config, *recipes.mae_pretrain()[:2])
    config.train.order = "epochs"
    config.batch_size = 4096
    config.total_epochs = 800
    config.evals.knn = common.knn(200)
    config.dtype = "bfloat16"
    config.optimizer.base_lr = 1.5e-4
    config.optimizer.warmup_steps = 40 * 312
    config.log_every_steps = 50
    config.eval_every_steps = config.save_every_steps = 20 * 312


def _smoke(config, variant: str) -> None:
    """Three steps of a narrow network."""

    def shrink(config):
        small = {"patch": 4, "width": 16, "depth": 2, "heads": 2}
        config.backbone = {"name": "vit", "architecture": variant, **small}
        config.method.decoder_width, config.method.decoder_depth = 16, 1
        config.method.decoder_heads = 2
        config.dtype = "float32"
        common.digits(config, views=1)
        config.optimizer.warmup_steps = 0
        config.val.batch_size = 8
        config.train.eval_examples = config.val.eval_examples = 16
        config.evals.knn.k = 5

    common.smoke(config, shrink)


WORDS = {"paper": _paper, "smoke": _smoke}
