"""Files of other systems: one module a format, told by the names in its state dict.

To add a format is to add a module with the four functions of `Format`. Nothing else names it: the
programs look through this folder. Modules with a leading underscore are shared parts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, cast

import ml_collections
import numpy as np

from jaxequi import names
from jaxequi.errors import Refusal
from jaxequi.types import PyTree

State = Mapping[str, np.ndarray]  # names of torch, without "module." and the like -> arrays


class Network(NamedTuple):
    """What a file holds, as ours.

    Attributes:
      variables: {"params": ..., **extra}, every leaf of the config's network; numpy arrays.
      config: of the network; its `method` is None for a backbone alone.
      left_out: a line for each kind of key that was passed over, with the reason.
      said: lines on what the file left open and how it was decided.
      undecided: of a file that leaves open what images f32[N, H, W, 3] can decide, normalised and
        cropped as the config's training shows them, what to call with them; `variables` is empty.
    """

    variables: PyTree
    config: ml_collections.ConfigDict
    left_out: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    undecided: Callable[[np.ndarray], Network] | None = None


class File(NamedTuple):
    """What a network is as a file.

    Attributes:
      content: nested dicts with numpy arrays where `torch.save` is to have tensors.
      loads: what of the original loads it, with the arguments that make it fit.
      left_out: a line for each kind of leaf that the original has no place for.
    """

    content: dict[str, Any]
    loads: str
    left_out: tuple[str, ...] = ()


class Format(Protocol):
    """The functions of a module of this folder."""

    def matches(self, state: State) -> bool:
        """Whether a state dict has this format's names. Values may be anything with a shape."""

    def native(self, config: ml_collections.ConfigDict) -> bool:
        """Whether runs of this config are written in this format, if no other is asked for."""

    def read(self, state: State, config: ml_collections.ConfigDict | None) -> Network:
        """Carry a state dict over into the config's network, every key and every leaf.

        Args:
          state: as `matches` found it.
          config: of the network, free to be changed; None where the command line has none.

        Raises:
          ValueError: the file does not say what network it is of and no config does, or the two
            differ: lists every key that has no place.
        """

    def write(self, config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
        """Carry {"params": ..., **extra} of a config's network over into a file of the original.

        Args:
          config: of the network; its `method` is None for a backbone alone.
          variables: of the network.
          epoch: at which a training by the original would go on.

        Raises:
          ValueError: the original has no such network and could not load it; says why.
        """


def find(name: str) -> Format:
    """Find a format by its name.

    Raises:
      ValueError: there is none; the message lists those that there are.
    """
    allowed = names.choices("interop.formats")
    if name not in allowed:
        raise names.unknown("format", name, allowed)
    return cast(Format, importlib.import_module(f"jaxequi.interop.formats.{name}"))


def of_file(state: State, config: ml_collections.ConfigDict | None = None) -> str:
    """Tell a file's format by its names and, where those leave a doubt, by the network's config.

    Raises:
      ValueError: no format or several of them, or the config's network is of another one.
    """
    allowed = names.choices("interop.formats")
    matching = [name for name in allowed if find(name).matches(state)]
    if not matching:
        some = ", ".join(list(state)[:4])
        raise Refusal(
            f"no format has the names of this file ({len(state)} arrays: {some}, ...). There is: "
            f"{', '.join(allowed)}."
        )
    if config is not None:
        fitting = [name for name in matching if find(name).native(config)]
        if not fitting:
            raise Refusal(
                f"the file has the names of {' or '.join(matching)}, and the config describes "
                f"{_described(config)}; give the config of the network that the file is of"
            )
        matching = fitting
    if len(matching) > 1:
        raise Refusal(
            f"{' and '.join(matching)} have the names of this file; say which it is, by "
            "--format=NAME or by the --config of its network"
        )
    return matching[0]


def of_run(config: ml_collections.ConfigDict) -> str:
    """Tell the format in which a run is written, by its config.

    Raises:
      ValueError: no format has such a network, or several have.
    """
    allowed = names.choices("interop.formats")
    matching = [name for name in allowed if find(name).native(config)]
    if not matching:
        raise Refusal(
            f"no format of {', '.join(allowed)} has a place for {_described(config)}; --backbone "
            "writes a backbone alone, where the original has files of it"
        )
    if len(matching) > 1:
        raise Refusal(
            f"{' and '.join(matching)} have a place for {_described(config)}; say by --format "
            "which it shall be"
        )
    return matching[0]


def needed(config: ml_collections.ConfigDict | None, example: str) -> ml_collections.ConfigDict:
    """Ask for the config, of files that do not say what network they are of.

    Raises:
      ValueError: there is none.
    """
    if config is None:
        raise Refusal(f"the file alone does not say what network it is of; give --config={example}")
    return config


def check(native: bool, config: ml_collections.ConfigDict) -> None:
    """Refuse a config whose network a format does not know; `native` is what it says of it.

    Raises:
      ValueError: it is not native.
    """
    if not native:
        raise Refusal(f"that format has no place for {_described(config)}")


def _described(config: ml_collections.ConfigDict) -> str:
    method = "a backbone alone" if config.method is None else f"method {config.method.name!r}"
    return f"{method}, backbone {config.backbone.name!r}"
