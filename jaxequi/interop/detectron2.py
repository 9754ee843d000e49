"""Backbones of self-supervised checkpoints as detectron2 reads them.

python -m jaxequi.interop.detectron2 --file=runs/NAME --output=weights.pkl [--encoder=target]

  --file FILE      a run over one of torchvision's ResNets; or, with torch installed, a checkpoint
                   of revisitAIRL, MoCo, SimSiam or a supervised ResNet
  --output FILE    the pickle to write, detectron2's `MODEL.WEIGHTS`; configs/detection/README.md
  --encoder NAME   online (default), target, or of a file supervised, for a network that is not one
                   of a pair

megvii-research/revisitAIRL, `convert-pretrain-to-detectron2.py`.
"""

from __future__ import annotations

import pathlib
import pickle
import re
from collections.abc import Mapping
from typing import Any

from absl import flags

from jaxequi import cli
from jaxequi.errors import Refusal
from jaxequi.experiment import trained
from jaxequi.interop import files, mapping
from jaxequi.interop.formats import _resnet
from jaxequi.names import unknown

PREFIXES = {
    "online": ("online_encoder.", "encoder_q.", "student_encoder.", "encoder."),
    "target": ("target_encoder.", "encoder_k.", "teacher_encoder."),
    "supervised": ("",),
}


FLAGS = flags.FlagValues()
_FILE = flags.DEFINE_string("file", None, "Run or checkpoint to read.", FLAGS)
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
        if name := _kept(key, encoder):
            kept[rename(name)] = array
    if "stem.conv1.weight" not in kept:
        raise Refusal(
            f"the file has no {encoder} encoder ({' or '.join(PREFIXES[encoder]) or 'conv1.'}); it "
            f"has {', '.join(list(state)[:4])}, ...; choose another --encoder"
        )
    return kept


def _kept(key: str, encoder: str) -> str:
    """Name an array of the backbone without its prefix; "" for any other array."""
    name = key.removeprefix("module.")
    prefix = next((p for p in PREFIXES[encoder] if name.startswith(p)), None)
    return "" if prefix is None or "fc" in name else name.removeprefix(prefix)


def of_run(run: str | pathlib.Path, encoder: str = "online") -> dict[str, Any]:
    """Give the backbone of a run's newest checkpoint under torch's names.

    Args:
      encoder: "target" for the moving average of a method that keeps one.

    Raises:
      ValueError: no such checkpoint or encoder, or another backbone than torchvision's, which alone
        has detectron2's strides and padding.
    """
    network = trained.load(run, encoder="target" if encoder == "target" else "")
    name = network.config.backbone.name
    if name != "torchvision_resnet":
        raise Refusal(
            f"{run} has the backbone {name!r}; detectron2's ResNets are torchvision's, "
            "--config.backbone.name=torchvision_resnet"
        )
    return mapping.to_torch(network.backbone_variables, _resnet.TABLE)


def pickled(model: Mapping[str, Any]) -> bytes:
    """Write the arrays as any detectron2 reads them: NumPy 1 has not what NumPy 2 calls itself."""
    return pickle.dumps(wrapped(model), protocol=3).replace(
        b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    )


def wrapped(model: Mapping[str, Any]) -> dict[str, Any]:
    """What detectron2 looks for in a pickle of weights that it did not write."""
    return {"model": dict(model), "__author__": "torchvision", "matching_heuristics": True}


@cli.program
def main(argv: list[str]) -> int:
    """Convert the file of the command line."""
    cli.arguments(argv, FLAGS, [], __doc__)
    if not (_FILE.value and _OUTPUT.value):
        raise Refusal("give --file=CHECKPOINT and --output=PICKLE; --help says more")
    if pathlib.Path(_FILE.value).is_dir():
        state, encoder = of_run(_FILE.value, _ENCODER.value), "supervised"
    else:
        state, encoder = files.state_dict(files.read_pth(_FILE.value))[0], _ENCODER.value
    model = convert(state, encoder)
    with files.appearing(_OUTPUT.value) as part:
        part.write_bytes(pickled(model))
    print(f"{_OUTPUT.value}: {len(model)} arrays")
    others = sorted({".".join(name.split(".")[:2]) for name in state if not _kept(name, encoder)})
    if others:
        print(f"left out: {', '.join(others)}, which are not of the {encoder} backbone")
    return 0


if __name__ == "__main__":
    cli.run(main)
