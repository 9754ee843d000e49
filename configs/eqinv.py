"""EqInv."""

from configs import common
from jaxequi.data import recipes

EQINV = {
    "name": "eqinv",
    "inv": "rex",
    "inv_weight": 100.0,
    "inv_start": 10,
    "cont_weight": 1.0,
    "temperature": 0.1,
    "activation": "sigmoid",
    "environments_from": "",
    "projector": "512-128",
}
# The method, whether it starts with stage 1, and what its views are.
ERM = {"name": "supervised", "num_classes": None, "turns": 1}
VARIANTS = {
    "eqinv": (EQINV, True, "pair"),
    "eqinv_randaug": ({**EQINV, "inv_weight": 10.0}, True, "pair_randaug"),
    "irm": ({**EQINV, "inv": "irm"}, True, "pair"),
    "finetune": (ERM, True, "simple"),
    "finetune_randaug": (ERM, True, "randaug"),
    "scratch": (ERM, False, "simple"),
    "mixup": (ERM, False, "mixup"),
    "smooth": (ERM, False, "smooth"),
    "strong": (ERM, False, "strong"),
    "randaug": (ERM, False, "randaug"),
    "stage1": (),
}
SIZE, SHOTS, CONTEXT = 32, 20, 0.9
UNIT = "normalise('unit')"
CROP = f"decode|random_resized_crop({SIZE}, scale=(0.3, 1.0))|flip"


def _scenes(split: str, per_class: int, seed: int, context: float) -> dict:
    """Pictures of so many objects of each class, one of each."""
    objects = 12 * per_class * (5 if split == "val" else 1)
    if split == "train":
        objects = 12 * (-(-per_class * 5 // 4))
    return {
        "name": "scenes",
        "split": split,
        "image_size": SIZE,
        "num_objects": objects,
        "num_views": 1,
        "seed": seed,
        "context": context,
    }


def _recipe(kind: str, paper: bool, classes: int) -> recipes.Recipe:
    """What a variant does to its pictures."""
    if paper:
        return {
            "pair": recipes.eqinv(),
            "pair_randaug": recipes.eqinv_random_aug(),
            "simple": recipes.imagenet(),
            "randaug": recipes.Recipe(recipes.eqinv_random_aug().views[2:3], (recipes.IMAGENET,)),
            "mixup": recipes.eqinv_mixup(classes=classes),
            "smooth": recipes.imagenet()._replace(mix=f"mixing({classes}, smoothing=0.1)"),
            "strong": recipes.eqinv_strong(),
        }[kind]
    hard = f"{CROP}|rand_augment_eqinv"
    jitter = f"color_jitter(0.4, 0.4, 0.4, 0.1, p=0.8)|grayscale(0.2)|{UNIT}"
    mixup = f"mixing({classes}, mixup=1.0, partner='permuted')"
    return {
        "pair": recipes.Recipe((CROP, CROP), (UNIT,)),
        "pair_randaug": recipes.Recipe((CROP, CROP, hard, hard), (UNIT,)),
        "simple": recipes.Recipe((CROP,), (UNIT,)),
        "randaug": recipes.Recipe((hard,), (UNIT,)),
        "mixup": recipes.Recipe((CROP,), (UNIT,), mixup),
        "smooth": recipes.Recipe((CROP,), (UNIT,), f"mixing({classes}, smoothing=0.1)"),
        "strong": recipes.Recipe((CROP,), (jitter,)),
    }[kind]


def _sets(config, recipe: recipes.Recipe) -> None:
    """The embedded problem."""
    train = {"name": "fewshot", "source": _scenes("train", 50, 0, CONTEXT), "shots": SHOTS}
    config.train = common.train_set(train, recipe.views, recipe.augment)
    config.train.mix = recipe.mix
    shown = {"views": ("decode",), "augment": (UNIT,), "batch_size": 100}
    config.val = common.held_out_set(_scenes("val", 25, 1, 0.0), **shown)
    config.testgt = common.held_out_set(_scenes("val", 50, 2, 0.0), **shown)


def _base():
    config = common.base()
    config.backbone = {**common.SMALL_RESNET, "width": 16, "zero_init_residual": False}
    config.online.features = ()
    config.batch_size = 60
    return config


def _tuned(variant: str):
    """One run of stage 2 and 3, or of a baseline."""
    method, starts, kind = VARIANTS[variant]
    config = _base()
    config.method = method
    _sets(config, _recipe(kind, False, 12))
    config.fresh = "^params/(classifier|mask|projector)/|^extra/batch_stats/projector/"
    config.optimizer = {
        "name": "sgd",
        "base_lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "drops",
        "drops": (0.6, 0.8),
        "factor": 0.1,
    }
    config.total_epochs = 100
    config.evals = {"classification": {"sets": ("val", "testgt")}}
    config.best = "val/classification/top1"
    config.show = ("loss", "accuracy", "*/classification/top1")
    config.log_every_steps = 20
    config.eval_every_steps = 40
    config.save_every_steps = 200
    if starts:
        config.init_from = "before:stage1"
        config.before = {"stage1": _stage1()}
    return config


def _stage1():
    """Without labels, on the same few pictures."""
    config = _base()
    config.method = {"name": "simclr", "projector": "128-64", "temperature": 0.2}
    jitter = f"color_jitter(0.4, 0.4, 0.4, 0.1, p=0.8)|grayscale(0.2)|{UNIT}"
    _sets(config, recipes.Recipe((CROP, CROP), (jitter,)))
    config.optimizer = {"name": "adam", "learning_rate": 2e-3, "schedule": "cosine"}
    config.total_epochs = 200
    config.evals = {"knn": common.knn(5), "rank": {}}
    config.show = ("loss", "val/knn/top1", "val/rank/*")
    config.log_every_steps = 40
    config.eval_every_steps = 200
    return config


def get_config(arg: str | None = None):
    """Build."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    config = _stage1() if variant == "stage1" else _tuned(variant)
    if variant == "eqinv":
        for name in ("scratch", "finetune"):
            one = _tuned(name)
            if "before" in one:
                del one.before
                one.init_from = config.get_ref("init_from")
            config.before[name] = one
        config.compare = ("scratch", "finetune")
    for word in words:
        WORDS[word](config)
    return config


def _smoke(config) -> None:
    """Three steps."""


WORDS = {"smoke": _smoke}
