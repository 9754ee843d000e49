"""What the config files share: words after the colon, and how a change is laid over a base."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

Change = Mapping[str, Any]


def base() -> ml_collections.ConfigDict:
    """Fields that every experiment has; a family sets the ones that it needs."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            # Durations: one of the two, the other stays None.
            "total_steps": ml_collections.config_dict.placeholder(int),
            "total_epochs": ml_collections.config_dict.placeholder(int),
            "batch_size": 64,  # global, whatever the number of devices
            "accumulate": 1,  # parts in which a batch's gradient is summed (where it is exact)
            "dtype": "float32",  # of the computation: float32 or bfloat16
            "remat": False,  # compute activations again in the backward pass, to save memory
            "mesh": {"data": -1, "fsdp": 1},
            "sharding": (),  # (regex, "fsdp" | "replicate") pairs over state leaves
            # on_error: "raise", or "skip" what cannot be read, up to a tenth (data/loader.py)
            "loader": {"threads": 2, "buffer": 4, "on_error": "raise"},
            "log_every_steps": 50,
            "eval_every_steps": 0,  # 0: never
            "save_every_steps": 1000,
            "keep_checkpoints": 2,  # newest ones, beside the best
            "best": ml_collections.config_dict.placeholder(str),  # metric of the best checkpoint
            "best_mode": "max",
            "show": ("loss",),  # patterns of the metrics on the terminal
            "profile_steps": (),  # (first, last): trace these steps into WORKDIR/profile
        }
    )


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
