"""Backbones of self-supervised checkpoints as detectron2 reads them.

python -m jaxequi.interop.detectron2 --file=checkpoint.pth.tar --output=model.pkl [--encoder=target]

  --file FILE      a checkpoint of revisitAIRL, MoCo or a supervised ResNet, with torch's names
  --output FILE    the pickle to write, for detectron2's `MODEL.WEIGHTS`
  --encoder NAME   online (default), target, or supervised for a network that is not one of a pair

megvii-research/revisitAIRL, `convert-pretrain-to-detectron2.py`. Needs torch, to read.
"""

from __future__ import annotations

import pathlib
import pickle
import re
from collections.abc import Mapping
from typing import Any

from absl import app, flags

from jaxequi import cli
from jaxequi.interop import files
from jaxequi.names import unknown

PREFIXES = {
    "online": ("online_encoder.", "encoder_q.", "student_encoder."),
    "target": ("target_encoder.", "encoder_k.", "teacher_encoder."),
    "supervised": ("",),
}


def rename(name: str) -> str:
    """ "layer2.0.downsample.1.bias" -> "res3.0.shortcut.norm.bias", "bn1.bias" with "stem."."""
    if "layer" not in name:
        name = f"stem.{name}"
    name = re.sub(r"layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def convert(state: Mapping[str, Any], encoder: str = "online") -> dict[str, Any]:
    """Take one encoder's backbone out of a state dict, under detectron2's names.

    Args:
      state: arrays under torch's names, with or without "module.".
      encoder: one of `PREFIXES`.

    Raises:
      ValueError: unknown encoder, or one that the state dict has not.
    """
    if encoder not in PREFIXES:
        raise unknown("encoder", encoder, PREFIXES)
    kept = {}
    for key, array in state.items():
        name = key.removeprefix("module.")
        prefix = next((p for p in PREFIXES[encoder] if name.startswith(p)), None)
        if prefix is not None and "fc" not in name:
            kept[rename(name.removeprefix(prefix))] = array
    if "stem.conv1.weight" not in kept:
        raise ValueError(
            f"the file has no {encoder} encoder ({' or '.join(PREFIXES[encoder]) or 'conv1.'}); it "
            f"has {', '.join(list(state)[:4])}, ...; choose another --encoder"
        )
    return kept


def wrapped(model: Mapping[str, Any]) -> dict[str, Any]:
    """What detectron2 looks for in a pickle of weights that it did not write."""
    return {"model": dict(model), "__author__": "torchvision", "matching_heuristics": True}


def main(argv: list[str]) -> int:
    """Convert the file of the command line."""
    given = flags.FLAGS
    try:
        if argv[1:] or not (given.file and given.output):
            raise ValueError("give --file=CHECKPOINT and --output=PICKLE, and nothing else")
        loaded = files.read_pth(given.file)
        model = convert(loaded.get("state_dict", loaded.get("model", loaded)), given.encoder)
        pathlib.Path(given.output).write_bytes(pickle.dumps(wrapped(model)))
    except ValueError as error:
        return cli.refuse(str(error))
    print(f"{given.output}: {len(model)} arrays")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("file", None, "Checkpoint to read.")
    flags.DEFINE_string("output", None, "Pickle to write.")
    flags.DEFINE_enum("encoder", "online", list(PREFIXES), "Which network of the file.")
    app.run(main, flags_parser=cli.parse)
