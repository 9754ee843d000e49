"""Write a network over a group as a plain one: python -m jaxequi.interop.export_plain RUN

    RUN --file=model.safetensors      # torchvision's names, ordinary filters
    RUN --file=model.pth              # the same as torch.save writes it
    RUN --file=model.onnx             # for any runtime; needs onnx
    RUN --file=model.stablehlo        # a compiled JAX program, its weights in model.safetensors

  --file FILE   to be written; its ending says what
  --size N      side of the images of a .stablehlo, and of those that are compared (default: 224)
  --step N      which checkpoint (default: the newest)

The group is worked into the filters, so that what comes out is a plain ResNet. Before `fc` stands
the maximum over the channels of each field. Its inputs are images as `val` shows them, normalised.
The file is loaded again, and its logits are compared with the run's.

A .stablehlo is a program of `jax.export` for CPU, CUDA and TPU, called with the state dict and
images f32[N, SIZE, SIZE, 3]. JAX promises to read it for six months only; the safetensors beside it
are what to keep.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxequi import cli, experiment, names
from jaxequi.errors import Refusal
from jaxequi.interop import files, networks, onnx, plain
from jaxequi.interop.plain import Plain, State

FLAGS = flags.FlagValues()
_FILE = flags.DEFINE_string("file", None, "The file to be written.", FLAGS)
_SIZE = flags.DEFINE_integer("size", 224, "Side of the images.", 1, flag_values=FLAGS)
_STEP = flags.DEFINE_integer(
    "step", None, "Which checkpoint; the newest by default.", flag_values=FLAGS
)

Computed = tuple[Any, str]
"""Logits of the loaded file, and what computed them."""
NEAR = 1e-3
"""Of the largest logit: how far a loaded file may be from the run."""


def _computed(made: Plain, state: State, images: np.ndarray) -> Any:
    floats = {name: a for name, a in state.items() if a.dtype == np.float32}
    return jax.jit(functools.partial(plain.logits, made))(floats, images)


def _torch(file: pathlib.Path, made: Plain, state: State, images: np.ndarray) -> Computed:
    files.write_pth(file, state)
    loaded, _ = files.state_dict(files.read_pth(file))
    return _computed(made, loaded, images), "the state dict"


def _safetensors(file: pathlib.Path, made: Plain, state: State, images: np.ndarray) -> Computed:
    about = {"order": str(made.group.order), "epsilon": str(made.epsilon), "format": "pt"}
    files.write_safetensors(file, state, about)
    loaded, _ = files.read_safetensors(file)
    return _computed(made, loaded, images), "the state dict"


def _onnx(file: pathlib.Path, made: Plain, state: State, images: np.ndarray) -> Computed:
    onnx.write(file, made, state)
    return onnx.run(file, images)


def _stablehlo(file: pathlib.Path, made: Plain, state: State, images: np.ndarray) -> Computed:
    weights = {name: a for name, a in state.items() if a.dtype == np.float32}
    (batch,) = jax.export.symbolic_shape("n")
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), weights)
    x = jax.ShapeDtypeStruct((batch, *images.shape[1:]), jnp.float32)
    program = jax.jit(functools.partial(plain.logits, made))
    exported = jax.export.export(program, platforms=("cpu", "cuda", "tpu"))(shapes, x)
    try:
        content = exported.serialize()
    except ImportError as error:
        raise Refusal("StableHLO needs flatbuffers: pip install flatbuffers") from error
    beside = file.with_suffix(".safetensors")
    _safetensors(beside, made, weights, images)
    with files.appearing(file) as part:
        part.write_bytes(content)
    loaded, _ = files.read_safetensors(beside)
    again = jax.export.deserialize(bytearray(file.read_bytes()))
    return again.call(loaded, images), f"jax.export, with {beside.name}"


ENDINGS: dict[str, Callable[[pathlib.Path, Plain, State, np.ndarray], Computed]] = {
    ".pth": _torch,
    ".safetensors": _safetensors,
    ".onnx": _onnx,
    ".stablehlo": _stablehlo,
}


def export(
    run: str | pathlib.Path, file: str | pathlib.Path, size: int = 224, step: int | None = None
) -> str:
    """Write the plain network of a run, load it again and compare.

    Returns:
      What to print.

    Raises:
      ValueError: another ending than `ENDINGS` has, a run of another network, a package that is not
        there, or a file that computes something else than the run.
    """
    file = pathlib.Path(file)
    if file.suffix not in ENDINGS:
        raise names.unknown("ending", file.suffix, ENDINGS)
    found, config, variables = networks.load(run, step)
    made, state = plain.expand(config, variables)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    computed, by = ENDINGS[file.suffix](file, made, state, images)
    method = experiment.make_method(config, {"num_classes": len(state["fc.bias"]), "examples": 1})
    extra = dict(variables)
    classify = jax.jit(lambda params, extra, views: method.encode(params, extra, views)["logits"])
    expected = classify(extra.pop("params"), extra, images[:, None])[:, 0]
    gap = float(np.abs(computed - expected).max() / np.abs(expected).max())
    if not gap <= NEAR:
        raise Refusal(f"{file}: {by} gives logits that are {gap:.1e} from those of {run}")
    count = sum(np.size(a) for a in state.values())
    return (
        f"{file}: {run}, step {found}, {made.network.width} channels, {count:,} numbers\n"
        f"loaded by {by}: its logits are those of the run to {gap:.1e} of the largest"
    )


@cli.program
def main(argv: list[str]) -> int:
    """Export the run of the command line."""
    [run] = cli.arguments(argv, FLAGS, ["RUN"], __doc__)
    if not _FILE.value:
        raise Refusal(f"give --file=FILE, ending in {', '.join(ENDINGS)}; --help says more")
    print(export(run, _FILE.value, _SIZE.value, _STEP.value))
    return 0


if __name__ == "__main__":
    cli.run(main)
