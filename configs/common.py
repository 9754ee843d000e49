"""What the config files share: words after the colon, and how a change is laid over a base."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from jaxequi.data import recipes

Change = Mapping[str, Any]
SMALL_RESNET = {"name": "resnet", "architecture": "resnet10", "stem": "small"}


# A field that is None until somebody sets it.
_open = ml_collections.config_dict.placeholder


def base() -> ml_collections.ConfigDict:
    """Fields that every experiment has; a family sets the ones that it needs."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            # Durations: one of the two, the other stays None.
            "total_steps": _open(int),
            "total_epochs": _open(int),
            "batch_size": 64,  # global, whatever the number of devices
            "accumulate": 1,  # parts in which a batch's gradient is summed (where it is exact)
            "dtype": "float32",  # of the computation: float32 or bfloat16
            "remat": False,  # compute activations again in the backward pass, to save memory
            # Every BatchNorm of the network; `groups` parts of the batch have their own statistics.
            "norm": {"groups": 1, "momentum": 0.1, "epsilon": 1e-5, "unbiased": True},
            # Start with the network of a checkpoint, all but what the pattern `fresh` names.
            "init_from": _open(str),  # folder of a run
            "init_step": _open(int),  # default: its newest checkpoint
            "init_encoder": "",  # "target" takes the moving average in place of the network
            "fresh": "",
            "protocol": "",  # what tables call this evaluation of it
            "backbone_changes": {},  # laid over its backbone, where the config describes none
            # Learn from features of that network, computed once, in place of images.
            "cache": {"on": False, "folder": _open(str)},  # default: beside the checkpoint
            # Heads that learn beside the method, on features that they do not change; none for ().
            "online": {
                "features": ("representation",),
                "relation": _open(str),
                "every_part": False,
                "whole_parts": False,
                "last_view": False,
            },
            # A layer's maps follow quarter turns and flips; off at weight 0. objective: l2, ntxent.
            "soft_equivariance": {
                "weight": 0.0,
                "layer": "",
                "pairs": 16,
                "objective": "l2",
                "temperature": 0.3,
            },
            "evals": {},  # name: options; see jaxequi/evals
            "check": "say",  # of a network over a group: "error" refuses one that is not exact
            "mesh": {"data": -1, "fsdp": 1},
            # (regex, "fsdp" | "replicate") pairs over state leaves: what mesh.fsdp devices share
            "sharding": ((".*", "fsdp"),),
            # on_error: "raise", or "skip" what cannot be read, up to a tenth (data/loader.py)
            "loader": {"threads": 2, "buffer": 4, "on_error": "raise"},
            "log_every_steps": 50,
            "eval_every_steps": 0,  # 0: never
            "save_every_steps": 1000,
            "keep_checkpoints": 2,  # newest ones, beside the best
            "best": _open(str),  # metric of the best checkpoint
            "best_mode": "max",
            "show": ("loss",),  # patterns of the metrics on the terminal
            "published": {},  # what its authors report, by the columns of the table: {"top-1": 0.7}
            "trackers": (),  # beside metrics.jsonl and TensorBoard: "wandb", "mlflow"
            # (first, last): trace these steps into WORKDIR/profile, and say where their time went.
            "profile_steps": (),
        }
    )


def train_set(source: Any, views: Any, augment: Any, num_views: Any = 1) -> dict[str, Any]:
    """Describe what is trained on; see jaxequi/experiment/sets.py."""
    return {
        "source": source,
        "views": views,
        "num_views": num_views,
        "augment": augment,
        "share": _open(float),
        "mix": "",
        "order": "epochs",  # or "stream", without an end
        "eval_examples": _open(int),
    }


def held_out_set(
    source: Any, views: Any, augment: Any, batch_size: int, num_views: Any = 1
) -> dict[str, Any]:
    """Describe what is evaluated on; evaluations see the training set's examples as `val`'s."""
    return {
        "source": source,
        "views": views,
        "num_views": num_views,
        "augment": augment,
        "batch_size": batch_size,
        "eval_examples": _open(int),
    }


def sgd_drops(*drops: float):
    """SGD as ResNets are trained on ImageNet: the rate falls to a tenth at parts of the run."""
    return {
        "name": "sgd",
        "base_lr": 0.1,  # of a batch of 256
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "drops",
        "drops": drops,
        "factor": 0.1,
    }


def knn(k: int) -> dict[str, Any]:
    """Describe the vote of the k nearest examples of the training set."""
    return {"k": k, "temperature": 0.07}


def digits(config: ml_collections.ConfigDict, views: int, size: int = 16) -> None:
    """Learn from crops of scikit-learn's digits without their labels; nothing to download."""
    crop = f"decode|random_resized_crop({size}, scale=(0.4, 1.0))"
    plain = "normalise('unit')"
    photometry = f"color_jitter(0.4, 0.4, 0.0, 0.0, p=0.8)|{plain}" if views > 1 else plain
    config.train = train_set({"name": "digits", "split": "train"}, (crop,) * views, (photometry,))
    shown = {"views": (f"decode|resize(({size}, {size}))",), "augment": (plain,)}
    config.val = held_out_set({"name": "digits", "split": "test"}, **shown, batch_size=64)


def imagenet(config: ml_collections.ConfigDict, views: Any, augment: Any) -> None:
    """Learn from ImageNet in class folders, --config.train.source.root=DIR/train and so on."""
    source = {"name": "folder", "root": "imagenet/train"}
    config.train = train_set(source, tuple(views), tuple(augment))
    # Theirs is one endless stream of shuffles, whose epochs are so many steps.
    config.train.order = "stream"
    shown = recipes.imagenet_eval()
    source = {"name": "folder", "root": "imagenet/val"}
    config.val = held_out_set(source, shown.views, shown.augment, batch_size=256)
    config.train.eval_examples = 100_000  # neighbours of kNN


def small_ssl(config: ml_collections.ConfigDict, words: str) -> None:
    """What the embedded default of every method without labels has in common."""
    config.backbone = {**SMALL_RESNET, "width": 16}
    config.batch_size = 64
    config.total_epochs = 30
    config.evals = {"online": {}, "knn": knn(20), "rank": {}}
    config.show = ("loss", *words.split(), "online/top1/*", "val/*/top1*", "val/rank/*")
    config.log_every_steps = 22
    config.eval_every_steps = config.save_every_steps = 110


def online_classifier(config: ml_collections.ConfigDict, learning_rate: float, **schedule) -> None:
    """Give the online heads the optimizer of their own that the references give theirs."""
    group = {"match": "^online/", "name": "sgd", "momentum": 0.9, "learning_rate": learning_rate}
    config.optimizer.groups = {"online": {**group, **schedule}}


def lars_rates(config: ml_collections.ConfigDict) -> None:
    """Give revisitAIRL's LARS recipes their rates, which are of some lengths of run only."""
    config.optimizer.base_lr = _open(float)
    config.optimizer.base_lr_of_epochs = ((100, 0.45), (200, 0.3), (300, 0.3))


def lay(config: ml_collections.ConfigDict, change: Change) -> None:
    """Lay a change over a config: dicts field by field, a dict with a `name` as a whole."""
    for field, value in change.items():
        if isinstance(value, Mapping) and "name" not in value and field in config:
            lay(config[field], value)
        elif isinstance(value, Mapping):
            config[field] = ml_collections.ConfigDict(value)
        else:
            config[field] = value


def variant(
    arg: str | None, variants: Mapping[str, Any], words: Mapping[str, Any]
) -> tuple[str, list[str]]:
    """Split `"vicreg,smoke"` into a variant (the first of the table by default) and words.

    Raises:
      ValueError: a word that is neither, with the nearest one that is.
    """
    chosen, extra = next(iter(variants)), []
    named = False
    for word in filter(None, (arg or "").split(",")):
        if word in variants and not named:
            chosen, named = word, True
        elif word in words and word not in extra:
            extra.append(word)
        else:
            near = difflib.get_close_matches(word, [*variants, *words], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"no variant {word!r}.{hint} Variants: {', '.join(variants)}; then, once each: "
                f"{', '.join(words)}."
            )
    return chosen, extra


def smoke(config: ml_collections.ConfigDict, shrink: Callable[[Any], None]) -> None:
    """Make an experiment tiny: three steps of eight examples; `shrink` does the family's part."""
    config.total_steps, config.total_epochs = 3, None
    config.batch_size = 8
    config.log_every_steps = 1
    config.eval_every_steps = 3 if config.eval_every_steps else 0
    config.save_every_steps = 2
    shrink(config)


def smoke_ssl(config: ml_collections.ConfigDict, views: int, shrink: Callable[[Any], None]) -> None:
    """Make a method without labels tiny, on digits; `shrink` narrows its networks."""

    def narrow(config):
        config.backbone = {**SMALL_RESNET, "width": 4}
        shrink(config)
        config.dtype = "float32"
        digits(config, views)
        if "base_lr_of_epochs" in config.optimizer:
            config.optimizer.base_lr = 0.3
        for field in ("warmup_steps", "pieces"):
            if field in config.optimizer:
                config.optimizer[field] = 0
        config.val.batch_size = 8
        config.train.eval_examples = config.val.eval_examples = 16
        config.evals.knn.k = 5

    smoke(config, narrow)
