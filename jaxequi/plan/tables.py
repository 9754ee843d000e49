"""A plan as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxequi.plan.estimate import PARTS
from jaxequi.train.log import size


def of_plan(plan: Mapping[str, Any]) -> str:
    """A plan's table, its scaling and its advice."""
    config = plan["config"]
    fits = _verdict(plan["fits"], plan["how"])
    over = "over with the program's code" if plan["fits"] else "too much"
    word = over if plan["spare_bytes"] < 0 else "spare"
    seconds = plan["seconds"]
    parts = ", ".join(f"{word} {_time(seconds[part])}" for part, word in PARTS.items())
    collectives = plan["collective_bytes"]
    told = ", ".join(f"{kind} {size(moved, 2)}" for kind, moved in collectives.items()) or "none"
    repeated = plan["repeated"]
    again = f", {repeated:.2f} times its share" if repeated > 1.05 else ""
    rows = [
        ("memory", f"{fits}: {size(plan['memory_bytes'], 2)} of "
                   f"{size(plan['capacity_bytes'], 2)} on a device, "
                   f"{size(abs(plan['spare_bytes']), 2)} {word}; "
                   f"state {size(plan['state_bytes'], 2)}"),
        ("largest batch", f"about {plan['largest_batch']}" if plan["largest_batch"] else "none"),
        ("arithmetic", f"{plan['flops'] / 1e12:.3g} TFLOP a device{again}"),
        ("memory traffic", f"{size(plan['traffic_bytes'], 2)} a device"),
        ("communication", f"{told} a device"),
        ("step", f"{_time(plan['step_seconds'])} or more ({parts}; "
                 f"{_time(plan['step_seconds_without_overlap'])} without overlap), bound by "
                 f"{PARTS[plan['bound']]}"),
        ("speed", f"{plan['examples_per_second']:.4g} examples/s at most"),
        ("run", f"{plan['steps']} steps, {plan['hours']:.3g} h or more, {plan['chip_hours']:.4g} "
                "chip-hours" + (f", costs {plan['cost']:.4g}" if plan["cost"] is not None else "")),
    ]  # fmt: skip
    head = (
        f"\n{plan['topology']}, {plan['chips']} chip(s), {config['method']} in batches of "
        f"{config['batch_size']}, {config['dtype']}"
        + (", remat" if config["remat"] else "")
        + f": {plan['how']} in {plan.get('seconds_to_plan', 0.0):.0f} s"
    )
    scaling = [
        (
            one["topology"],
            f"{_time(one['step_seconds'])}  {one['efficiency']:4.0%}  {PARTS[one['bound']]}",
        )
        for one in plan["scaling"]
    ]
    per = f"{config['batch_size'] / plan['devices']:.4g}"
    return "\n".join(
        [
            head,
            *_lined(rows),
            f"  the same {per} examples a device on",
            *_lined(scaling, 4),
            f"  advice: {plan['advice']}",
        ]
    )


def of_effects(rows: Mapping[str, Mapping[str, Any]], how: str) -> str:
    """What other settings would change."""
    lines = [
        (
            name,
            f"{size(one['memory_bytes'], 2)}"
            f"{'' if one['fits'] else f' ({_verdict(False, how)})'}, batch up to "
            f"about {one['largest_batch']}, step {_time(one['step_seconds'])} or more, "
            f"{PARTS[one['bound']]}",
        )
        for name, one in rows.items()
    ]
    return "\n".join([f"  effects, {how}:", *_lined(lines, 4)])


def _lined(rows: Sequence[tuple[str, str]], indent: int = 2) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{'':{indent}}{name:<{width}}  {text}" for name, text in rows]


def _verdict(fits: bool, how: str) -> str:
    """What the compiler says, or what it would say by an estimate."""
    if how == "estimated":
        return "would fit" if fits else "would NOT fit"
    return "fits" if fits else "does NOT fit"


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
