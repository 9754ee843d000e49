"""MoCo v1, v2, v2+ and S-MoCo v2+: a queue of keys and a key encoder that follows slowly.

He et al., CVPR 2020, arXiv 1911.05722; Chen et al., arXiv 2003.04297; Huang et al. (the benchmark
of augmentation-invariant learning), ECCV 2022, arXiv 2208.00275. megvii-research/revisitAIRL,
`exp/`; facebookresearch/moco, `main_moco.py`.

    python -m jaxequi.main --config=configs/moco.py                # v2 on scikit-learn's digits
    python -m jaxequi.main --config=configs/moco.py:v2plus
    python -m jaxequi.main --config=configs/moco.py:v2,paper --config.train.source.root=DIR/train \\
        --config.val.source.root=DIR/val
    python -m jaxequi.main --config=configs/linear.py --config.init_from=RUN

Variants: `v2` (the default), `v1`, `v2plus`, `v2plus_lars`, `v2plus_symmlp` (S-MoCo v2+) are the
benchmark's, `moco_v1` and `moco_v2` the authors' own, which differ in the schedule, and ask for
batches that divide the queue. Words: `paper` is ImageNet, ResNet-50, batch 256 (LARS 4096), 200
epochs (LARS also 100 or 300, which have rates of their own); `smoke` takes seconds.

"Per-GPU" BatchNorm and the shuffling of keys are `config.norm.groups=8` on any number of devices.
"""

from configs import common
from jaxequi.data import recipes

V2 = {"name": "moco", "projector": "2048-128", "shuffle": True, "temperature": 0.2, "queue": 65536}
PLUS = {
    "name": "moco",
    "projector": "4096-256",
    "predictor": "4096-256",
    "batch_norm": True,
    "symmetric": True,
    "shuffle": False,
    "momentum": 0.99,
    "momentum_schedule": "cosine",
    "temperature": 0.2,
    "queue": 65536,
}
V1 = {**V2, "projector": "128", "temperature": 0.07}
WHOLE = {"whole_batches": True}
COSINE, STEPS = {"schedule": "cosine"}, {"schedule": "drops", "drops": (0.6, 0.8)}
WARM = {**COSINE, "warmup_from": 1e-6}
# the method, its learning rate's course, whether its BatchNorm is of each of eight workers
VARIANTS = {
    "v2": (V2, WARM, 8),
    "v1": (V1, STEPS, 8),
    "v2plus": (PLUS, WARM, 1),
    "v2plus_lars": (PLUS, WARM, 1),
    "v2plus_symmlp": ({**PLUS, "last_bias": False, "predict_keys": True}, WARM, 1),
    "moco_v1": ({**V1, **WHOLE}, STEPS, 8),
    "moco_v2": ({**V2, **WHOLE}, COSINE, 8),
}
BENCHMARK_EPOCH = 5004  # steps: of ImageNet in batches of 256


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, v2."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    method, course, groups = VARIANTS[variant]
    config = common.base()
    config.method = method
    common.small_ssl(config, "keys/top1 momentum")
    # Small keys and a short queue for a small set; the temperature and the rest as published.
    config.method.projector = "64" if "v1" in variant else "128-64"
    if "predictor" in method:
        config.method.predictor = "128-64"
    config.method.queue = 512
    # An average that takes thousands of steps to follow would not have begun in hundreds.
    config.method.momentum = 0.99
    common.digits(config, views=2)
    config.norm.groups = groups
    config.optimizer = {
        "name": "lars" if variant.endswith("lars") else "sgd",
        "base_lr": 0.3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        **course,
    }
    if course is WARM:
        config.optimizer.warmup_steps = 44
    if variant.endswith("lars"):
        config.optimizer.base_lr = 4.0
        config.optimizer.weight_decay, config.optimizer.no_decay = 1e-6, "(bias|scale)$"
    common.online_classifier(config, 0.3)
    for word in words:
        WORDS[word](config, variant)
    return config


def _paper(config, variant: str) -> None:
    """The published experiment."""
    method, course, _ = VARIANTS[variant]
    lars = variant.endswith("lars")
    config.backbone = {"name": "torchvision_resnet", "architecture": "resnet50"}
    config.method = method
    recipe = recipes.moco_v1() if "v1" in variant else recipes.moco_v2()
    common.imagenet(config, *recipe[:2])
    config.batch_size = 4096 if lars else 256
    config.total_epochs = 200
    config.evals.knn = common.knn(200)
    config.online.last_view = True
    config.norm.unbiased = not lars  # theirs synchronises by hand
    config.dtype = "bfloat16"
    config.optimizer = {
        "name": "lars" if lars else "sgd",
        "base_lr": 0.03,
        "momentum": 0.9,
        "weight_decay": 1e-6 if lars else 1e-4,
        **course,
    }
    steps = BENCHMARK_EPOCH * 256 // config.batch_size
    if course is WARM:
        config.optimizer.warmup_steps = 10 * steps
    if lars:
        config.optimizer.no_decay = "(bias|scale)$"
        common.lars_rates(config)
        common.online_classifier(config, 0.2, schedule="cosine")
    else:
        # Theirs counts the milestones of the classifier in epochs, 60 and 80 of 200.
        common.online_classifier(config, 30.0, schedule="drops", drops=(0.3, 0.4))
    if variant == "moco_v2":
        config.train.order = "epochs"
        config.optimizer.pieces = 200  # the rate changes from epoch to epoch
    config.log_every_steps = 50
    config.eval_every_steps = config.save_every_steps = 5 * steps


def _smoke(config, variant: str) -> None:
    """Three steps of narrow networks."""

    def shrink(config):
        config.method.projector = "8" if "v1" in variant else "16-8"
        if "predictor" in config.method:
            config.method.predictor = "16-8"
        config.method.queue = 16
        config.norm.groups = min(config.norm.groups, 4)

    common.smoke_ssl(config, 2, shrink)


WORDS = {"paper": _paper, "smoke": _smoke}
