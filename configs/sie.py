"""SIE and its family: split invariant-equivariant representations of 3D objects.

Garrido, Najman, LeCun: Self-Supervised Learning of Split Invariant Equivariant Representations,
ICML 2023, arXiv 2302.10283. The variants are the fourteen classes of facebookresearch/SIE, and
`wigner`, which is beyond them.

    python -m jaxequi.main --config=configs/sie.py                 # SIE, embedded data
    python -m jaxequi.main --config=configs/sie.py:vicreg          # another method
    python -m jaxequi.main --config=configs/sie.py:sie,smoke       # three tiny steps
    python -m jaxequi.main --config=configs/sie.py:sie,paper \\
        --config.train.source.root=DIR --config.val.source.root=DIR

Words after the variant: `paper` is the published experiment on 3DIEBench (ResNet-18, 256 pixels,
batch 1024, 2000 epochs, Adam 1e-3 constant); `smoke` is tiny; `deep` and `mlp` are the other
predictors. Every coefficient of every objective is as published in all of them.

Measured as it is below (2026-11-22, two CPU cores, five minutes a run; seeds 0, 1, 2: mean and
standard deviation; online heads over the training batches of the last 50 steps). Pooled R2
scores a constant guess 0.229; in the columns of the quaternion that is 0. Chance of top-1 is 8 %.

    read off         top-1        rotation R2  x            y            z            w
    SIE equivariant  0.73 ± 0.02  0.74 ± 0.05  0.70 ± 0.05  0.67 ± 0.08  0.67 ± 0.06  0.51 ± 0.07
    SIE invariant    0.74 ± 0.05  0.47 ± 0.02  0.41 ± 0.06  0.33 ± 0.03  0.24 ± 0.03  0.15 ± 0.02
    SIE all          0.79 ± 0.03  0.73 ± 0.05  0.69 ± 0.05  0.65 ± 0.08  0.64 ± 0.06  0.47 ± 0.06
    VICReg all       0.98 ± 0.02  0.41 ± 0.02  0.34 ± 0.03  0.22 ± 0.04  0.17 ± 0.01  0.08 ± 0.02
"""

from configs import common

HYPERNETWORK = {
    "name": "hypernetwork",
    "hidden": "",  # widths of inner layers of the generated network; "" is one matrix
    "deep": False,  # three layers from z to the weights instead of one
    "bias": False,  # of the hypernetwork
    "predicted_bias": False,  # generate biases too
    "relu": False,  # between generated layers
}
NTXENT = {"name": "ntxent", "temperature": 0.1}
VICREG = {"similarity_weight": 10.0, "variance_weight": 10.0, "covariance_weight": 1.0}
SIE = {
    "name": "sie",
    "equivariance_factor": 0.45,
    "vary_prediction": True,
    "relation": "rotation",
    "predictor": HYPERNETWORK,
    **VICREG,
}
ONLY_EQUI = {"name": "only_equi", "relation": "rotation", "predictor": HYPERNETWORK}
EQUIMOD = {**ONLY_EQUI, "name": "equimod", "equivariance_factor": 1.0}
AUGSELF = {"name": "augself", "objective": NTXENT, "weight": 1.0, "relation": "rotation"}

VARIANTS = {
    "sie": SIE,
    "sie_novar": {**SIE, "vary_prediction": False},
    "sie_rotcolor": {**SIE, "relation": "rotation+color"},
    "only_equi": {**ONLY_EQUI, "objective": {"name": "vicreg", "vary_prediction": True, **VICREG}},
    "vicreg": {"name": "vicreg", "free": 0, **VICREG},
    "vicreg_partinv": {"name": "vicreg", **VICREG},
    "vicreg_equimod": {**EQUIMOD, "objective": {"name": "vicreg", **VICREG}},
    "simclr": {"name": "simclr", "temperature": 0.1},
    "simclr_only_equi": {**ONLY_EQUI, "objective": NTXENT},
    "simclr_only_equi_rotcolor": {
        **ONLY_EQUI,
        "objective": NTXENT,
        "relation": "rotation+color",
    },
    "simclr_equimod": {**EQUIMOD, "objective": NTXENT},
    # The reference's class leaves the factor out, which is a factor of 1.
    "simclr_equimod_rotcolor": {**EQUIMOD, "objective": NTXENT, "relation": "rotation+color"},
    "simclr_augself": AUGSELF,
    "simclr_augself_rotcolor": {**AUGSELF, "relation": "rotation+color"},
    # Beyond the paper: the embedding is typed by irreps of SO(3), on which rotations act exactly.
    "wigner": {**SIE, "predictor": {"name": "wigner"}},
}
# Of the equivariant part of a projector: a fifth of its dimensions scalars, two fifths each of
# degree 1 and 2, about.
IRREPS = {
    "2048-2048-2048": "192x0e+144x1o+80x2e",
    "256-256-256": "24x0e+18x1o+10x2e",
    "16-16-16": "1x0e+1x1o",
}


def _sizes(config, equi: int, projector: str) -> None:
    """Set the widths of a method's parts: the equivariant one, and the projector's layers."""
    method = config.method
    method.projector = projector
    if method.name == "sie":
        method.equi = equi
    if method.name == "vicreg" and method.get("free", equi):
        method.free = equi  # here it counts dimensions of the embedding
    if method.get("predictor", {}).get("name") == "wigner":
        method.predictor.irreps = IRREPS[projector]


def _count_batch(config) -> None:
    """Give the covariance its divisor, the configured batch size, wherever it is set."""
    for part in (config.method, config.method.get("objective", {})):
        if "covariance_weight" in part:
            part.batch_size = config.get_ref("batch_size")


def _data(config, source: dict, normalise: str, views: str = "decode", batch_size=64) -> None:
    """Train on pairs of views of an object, evaluate on one pair of each held-out object."""
    shown = {"views": (views,), "augment": (normalise,), "num_views": 2}  # nothing is augmented
    config.train = common.train_set({**source, "split": "train"}, **shown)
    held_out = {**source, "split": "val"}
    config.val = common.held_out_set(held_out, **shown, batch_size=batch_size)


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, SIE."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    config = common.base()
    config.method = VARIANTS[variant]
    config.online.features = ("representation", "embedding")
    config.online.relation = "rotation"
    config.online.every_part = True  # ask the invariant part for the rotation too, and so on
    config.evals = {"online": {}, "knn": common.knn(20)}
    config.show = (
        "loss",
        "online/r2/representation*",
        "online/top1/representation*",
        "val/knn/top1",
    )

    # Branches that start at zero leave a short run too little time to grow them.
    small = {"architecture": "resnet10", "width": 16, "stem": "small", "zero_init_residual": False}
    config.backbone = {"name": "resnet", **small}
    _sizes(config, equi=64, projector="256-256-256")
    scenes = {"name": "scenes", "image_size": 48, "num_objects": 300, "seed": 0}
    _data(config, scenes, "normalise((0.51, 0.50, 0.50), (0.15, 0.15, 0.15))")
    config.batch_size = 64
    config.total_steps = 1200
    config.optimizer = {"name": "adam", "learning_rate": 2e-3, "weight_decay": 1e-6}
    config.eval_every_steps = 200
    config.save_every_steps = 200

    _count_batch(config)
    for word in words:
        WORDS[word](config)
    return config


def _paper(config) -> None:
    """The published experiment."""
    config.backbone = {
        "name": "resnet",
        "architecture": "resnet18",
        "width": 64,
        "stem": "imagenet",
    }
    _sizes(config, equi=256, projector="2048-2048-2048")
    lists = {"images_file": "", "labels_file": "", "published": True}  # by default in the root
    source = {"name": "threedie", "root": "3DIEBench", **lists}
    _data(config, source, "normalise('threedie')", "decode|resize(256)", batch_size=256)
    config.online.every_part, config.online.whole_parts = False, True  # as published
    config.batch_size = 1024
    config.total_steps, config.total_epochs = None, 2000
    config.optimizer.learning_rate = 1e-3
    config.eval_every_steps = config.save_every_steps = 40 * 20


def _smoke(config) -> None:
    """Tiny images and networks, whatever the experiment."""

    def shrink(config):
        small = {"architecture": "resnet10", "width": 4, "stem": "small"}
        config.backbone = {"name": "resnet", **small}
        scenes = {"name": "scenes", "image_size": 16, "num_objects": 24, "seed": 0}
        _data(config, scenes, config.train.augment[0], batch_size=8)
        config.evals.knn.k = 5
        _sizes(config, equi=8, projector="16-16-16")

    common.smoke(config, shrink)


def _deep(config) -> None:
    """The deep hypernetwork."""
    config.method.predictor.deep = True


def _mlp(config) -> None:
    """The MLP predictor."""
    config.method.predictor = {"name": "mlp", "layers": 1}


WORDS = {"paper": _paper, "smoke": _smoke, "deep": _deep, "mlp": _mlp}
