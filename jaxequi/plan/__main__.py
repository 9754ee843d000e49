"""Plan a run on machines that are not here: python -m jaxequi.plan --config=... --topology=v5e:4x4

Compiles a config's train step for TPU slices, on a machine that has none, and says of each: does it
fit, and by how much; the largest batch; arithmetic, memory traffic and communication of a step; how
long it takes at least, and what bounds it; what the run costs; how it scales to 256 chips; what
remat, precision and a split state would change; and one line of advice. Nothing is trained, and no
data set need be here: a published one that is missing is planned by its size.

  --topology CHIP:SHAPE   v5e:16x16, v6e:2x4, v5p:4x4x4, v7x:2x2x1; GPUs a100:8, h100, h200, b200;
                          again for more. Without it, the GPUs of this machine
  --how                   compile (needs the `tpu` extra; minutes for a large network), estimate
                          (from the trace, seconds), or auto: compile where that is possible
  --effects               estimate, compile or none: of remat, bfloat16, fsdp
  --price X               of a chip-hour, for the cost of the run
  --json                  print JSON in place of tables
  --examples, --classes, --image_size   what the training set is like, if it is not here

GPUs are compiled for where JAX sees as many of them, else estimated. Compiled, a run fits or not by
the compiler's own word. Times are lower bounds at peak rates: they rank, and promise nothing.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from jaxequi import cli, names
from jaxequi.errors import Refusal
from jaxequi.plan import chips, inputs, planning, tables
from jaxequi.train import mesh as meshes

HOW = ("auto", "compile", "estimate")
EFFECTS = ("estimate", "compile", "none")

FLAGS = flags.FlagValues()
cli.define_config(FLAGS)
_TOPOLOGY = flags.DEFINE_multi_string(
    "topology", [], "Chips and their shape: v5e:4x4.", flag_values=FLAGS
)
_HOW = flags.DEFINE_string("how", "auto", ", ".join(HOW), flag_values=FLAGS)
_EFFECTS = flags.DEFINE_string("effects", "estimate", ", ".join(EFFECTS), flag_values=FLAGS)
_PRICE = flags.DEFINE_float("price", None, "Of a chip-hour.", flag_values=FLAGS)
_JSON = flags.DEFINE_bool("json", False, "JSON in place of tables.", flag_values=FLAGS)
_EXAMPLES = flags.DEFINE_integer("examples", None, "Training examples.", 1, flag_values=FLAGS)
_CLASSES = flags.DEFINE_integer("classes", None, "Classes.", 1, flag_values=FLAGS)
_SIZE = flags.DEFINE_integer("image_size", None, "Pixels a side.", 1, flag_values=FLAGS)


@cli.program
def main(argv: list[str]) -> int:
    """Plan the config on each topology."""
    cli.arguments(argv, FLAGS, [], __doc__)
    for flag, allowed in ((_HOW, HOW), (_EFFECTS, EFFECTS)):
        if flag.value not in allowed:
            raise names.unknown(f"--{flag.name}", flag.value, allowed)
    if _PRICE.value is not None and not (_PRICE.value >= 0 and math.isfinite(_PRICE.value)):
        raise Refusal(f"--price={_PRICE.value}: a chip-hour costs 0 or more")
    given, overridden, _ = cli.config(FLAGS)
    slices = [chips.parse(text) for text in _TOPOLOGY.value]
    if slices and all(one.chip.platform == "tpu" for one in slices):
        # libtpu is a compiler here: JAX need not look for the TPU that it promises.
        jax.config.update("jax_platforms", "cpu")
    data = inputs.Data(_EXAMPLES.value, _CLASSES.value, _SIZE.value)
    config, assumed = inputs.prepared(given, data)
    for line in assumed:
        print(line, file=sys.stderr)
    # Tables as they come, or all of it at the end.
    say = _nothing if _JSON.value else functools.partial(print, flush=True)
    plans = [_plan(part, config, overridden, say) for part in slices or [chips.here()]]
    if _JSON.value:
        print(json.dumps({"assumed": assumed, "plans": plans}, indent=2))
    return 0


def _nothing(text: str) -> None:
    del text


def _plan(
    part: chips.Slice, config: Any, overridden: Any, say: Callable[[str], None]
) -> dict[str, Any]:
    """Plan on one slice, and say so."""
    devices, how = _devices(part)
    began = time.perf_counter()
    step = planning.traced(inputs.job(config, overridden, devices))
    compiles = how == "compiled"
    cost = planning.compiled(step) if compiles else planning.estimated(step)
    plan = planning.plan(part, step, cost, how, _PRICE.value)
    plan["seconds_to_plan"] = time.perf_counter() - began
    say(tables.of_plan(plan))
    if _EFFECTS.value != "none":
        again = compiles and _EFFECTS.value == "compile"
        measure = planning.compiled if again else planning.estimated
        label = "compiled" if again else "estimated"
        base = plan if label == how else planning.plan(part, step, measure(step), label)
        others = planning.effects(config, overridden, part, devices, measure, label)
        say(tables.of_effects({"as configured": base, **others}, label))
        plan["effects"] = {"how": label, **others}
    return plan


def _devices(part: chips.Slice) -> tuple[meshes.Devices, str]:
    """The devices of a slice, or their number where they can only be estimated."""
    asked = _HOW.value
    if asked == "estimate":
        return part.devices, "estimated"
    if part.chip.platform == "tpu":
        if importlib.util.find_spec("libtpu") is not None:
            # What is compiled for a device that is not here can be written there, and not read.
            jax.config.update("jax_enable_compilation_cache", False)
            return chips.devices(part), "compiled"
        missing = 'the compiler for TPUs is not here: pip install "jaxequi[tpu]"'
    else:
        found = chips.local(part)
        if found is not None:
            return found, "compiled"
        missing = f"JAX sees no {part.name} to compile for"
    if asked == "compile":
        raise Refusal(f"--how=compile: {missing}, or use --how=estimate")
    print(f"{missing}; this is an estimate", file=sys.stderr)
    return part.devices, "estimated"


if __name__ == "__main__":
    cli.run(main)
