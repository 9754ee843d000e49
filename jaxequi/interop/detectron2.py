"""Backbones of self-supervised checkpoints as detectron2 reads them.

python -m jaxequi.interop.detectron2 --file=checkpoint.pth.tar --output=model.pkl [--encoder=target]

  --file FILE      a checkpoint of revisitAIRL, MoCo or a supervised ResNet, with torch's names
  --output FILE    the pickle to write, for detectron2's `MODEL.WEIGHTS`
  --encoder NAME   online (default), target, or supervised for a network that is not one of a pair

megvii-research/revisitAIRL, `convert-pretrain-to-detectron2.py`. Needs torch, to read.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from typing import Any

from absl import flags

from jaxequi import cli
from jaxequi.errors import Refusal
from jaxequi.interop import files
from jaxequi.names import unknown

PREFIXES = {
    "online": ("online_encoder.", "encoder_q.", "student_encoder."),
    "target": ("target_encoder.", "encoder_k.", "teacher_encoder."),
    "supervised": ("",),
}


FLAGS = flags.FlagValues()
_FILE = flags.DEFINE_string("file", None, "Checkpoint to read.", FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Pickle to write.", FLAGS)
_ENCODER = flags.DEFINE_enum(
    "encoder", "online", list(PREFIXES), "Which network of the file.", flag_values=FLAGS
)


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
        raise Refusal(
            f"the file has no {encoder} encoder ({' or '.join(PREFIXES[encoder]) or 'conv1.'}); it "
            f"has {', '.join(list(state)[:4])}, ...; choose another --encoder"
        )
    return kept


def wrapped(model: Mapping[str, Any]) -> dict[str, Any]:
    """What detectron2 looks for in a pickle of weights that it did not write."""
    return {"model": dict(model), "__author__": "torchvision", "matching_heuristics": True}


@cli.program
def main(argv: list[str]) -> int:
    """Convert the file of the command line."""
    cli.arguments(argv, FLAGS, [], __doc__)
    if not (_FILE.value and _OUTPUT.value):
        raise Refusal("give --file=CHECKPOINT and --output=PICKLE; --help says more")
    model = convert(files.state_dict(files.read_pth(_FILE.value))[0], _ENCODER.value)
    with files.appearing(_OUTPUT.value) as part:
        part.write_bytes(pickle.dumps(wrapped(model)))
    print(f"{_OUTPUT.value}: {len(model)} arrays")
    return 0


if __name__ == "__main__":
    cli.run(main)
