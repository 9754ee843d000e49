"""What every layer of a network puts out, by name and in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxequi.types import Array


class Recorder(NamedTuple):
    """A program that also returns what its layers put out.

    Attributes:
      names: paths of the modules, in the order in which they ran, then `output`.
      shapes: what each puts out for the images that the recorder was made for.
      run: images f32[B, H, W, C] -> one array for each name; jitted.
    """

    names: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    run: Callable[[Array], Sequence[Array]]


def recorder(
    fn: Callable[[Array], Any], shape: tuple[int, ...], keep: Callable[[str], bool] | None = None
) -> Recorder:
    """Make the recorder of a program that calls Linen modules.

    Args:
      fn: images f32[B, H, W, C] -> an array, such as a bound `model.apply`.
      shape: [B, H, W, C] of the images.
      keep: which names to record; None keeps all modules that put out [B, H', W', C']. Where the
        examples do not come first, as in the planes of `nn.fourier`, it is no map.
    """
    maps: set[str] = set()  # by the first trace: a later batch may be as long as the planes

    def record(images: Array) -> tuple[list[str], list[Array]]:
        names: list[str] = []
        arrays: list[Array] = []

        def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = call(*args, **kwargs)
            name = "/".join(context.module.path)
            is_map = isinstance(result, jax.Array) and result.ndim == 4
            if is_map and images.shape == shape and result.shape[0] == shape[0]:
                maps.add(name)
            is_map &= name in maps
            if context.method_name == "__call__" and name and is_map and (not keep or keep(name)):
                names.append(name)
                arrays.append(result)
            return result

        with nn.intercept_methods(note):
            output = fn(images)
        return [*names, "output"], [*arrays, output]

    names: list[str] = []

    def trace(images: Array) -> list[Array]:
        found, arrays = record(images)
        names[:] = found
        return arrays

    found = jax.eval_shape(trace, jax.ShapeDtypeStruct(shape, "float32"))
    return Recorder(tuple(names), [a.shape for a in found], jax.jit(trace))
