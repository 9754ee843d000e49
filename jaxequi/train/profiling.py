"""A trace of some steps, in words: where the time goes, by scope and by operation.

The trace (`WORKDIR/profile`, for TensorBoard or Perfetto) names instructions of the compiled step;
the compiled text says in which scope of the source each one stands.
"""

from __future__ import annotations

import collections
import contextlib
import pathlib
import platform
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax

SUMMARY = "summary.txt"
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_AROUND = re.compile(r" (?:while|conditional|call)\(")  # its time is that of what is inside
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_SCOPE = re.compile(r'op_name="([^"]*)"')
_WRAPPED = re.compile(r"^(?:jvp|transpose|vmap|remat|checkpoint|custom_\w+)\((.*)\)$")
# Parts of a path that are how JAX runs something, and not what it is.
_HOW = {"while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "remat", ""}
DEPTH = 2  # of the scopes that are told apart: the module, and its parts
SHOWN = 15  # scopes, and operations


class Event(NamedTuple):
    """An instruction that ran: its name, where, and from when to when in nanoseconds."""

    name: str
    device: str
    start: float
    stop: float


def end() -> None:
    """End a trace that a run left in its midst: there is one at a time in a process."""
    with contextlib.suppress(RuntimeError):  # there is none
        jax.profiler.stop_trace()


def scopes(program: str) -> dict[str, str]:
    """Of each instruction of a compiled program's text, the scope: "Siamese/backbone (backward)".

    An instruction without a scope of its own has that of most of what it calls.
    """
    own: dict[str, str] = {}
    called: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    computation: list[str] = []
    for line in program.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            computation = members.setdefault(head[1], [])
            continue
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        name, rest = found.groups()
        if _AROUND.search(rest):
            continue
        computation.append(name)
        path, calls = _SCOPE.search(rest), _CALLED.search(rest)
        if path:
            own[name] = path[1]
        if calls:
            called[name] = calls[1]
    for name, computation_name in called.items():
        inside = [own[one] for one in members.get(computation_name, ()) if one in own]
        if name not in own and inside:
            own[name] = collections.Counter(inside).most_common(1)[0][0]
    names = {name for inside in members.values() for name in inside}
    return {name: scope(own[name]) if name in own else "other" for name in names}


def scope(path: str) -> str:
    """Read a path such as "jit(train_step)/transpose(jvp(Siamese))/backbone/conv1/dot_general"."""
    _, *parts = path.split("/")
    backward = any(part.startswith("transpose(") for part in parts)
    derived = any("jvp(" in part for part in parts)
    kept = []
    for part in parts[:-1]:
        while inner := _WRAPPED.match(part):
            part = inner[1]
        if part not in _HOW and not part.startswith(("jit(", "branch_")) and "<" not in part:
            kept.append(part)
    name = "/".join(kept[:DEPTH]) or ("loss" if derived else "other")
    return f"{name} (backward)" if backward else name


def newest(folder: pathlib.Path) -> pathlib.Path:
    """The file of this host's last trace among those that a folder holds."""
    files = folder.rglob(f"{platform.node()}.xplane.pb")
    return max(files, key=lambda file: file.stat().st_mtime)


def events(trace: pathlib.Path, instructions: Iterable[str]) -> list[Event]:
    """The instructions that a trace saw run, on any device; on a CPU on any thread of it.

    They are told by their names: what another program has under the same name counts as well.
    """
    known, found = set(instructions), []
    data = jax.profiler.ProfileData.from_file(str(trace))
    for plane in data.planes:
        on_device = plane.name.startswith("/device:")
        for line in plane.lines:
            for event in line.events:
                name = event.name
                if on_device and name not in known:  # a kernel says of which instruction it is
                    name = str(dict(event.stats).get("hlo_op", ""))
                if name in known:
                    stop = event.start_ns + event.duration_ns
                    found.append(Event(name, plane.name, event.start_ns, stop))
    return found


def busy(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def summary(ran: Iterable[Event], scope_of: Mapping[str, str], steps: int) -> str:
    """Say where the time of some steps went.

    Args:
      ran: the instructions of those steps.
      scope_of: as of `scopes`.
      steps: how many there were.

    Returns:
      Milliseconds a step and shares by scope, of the longest operations, and the share of time in
      which no instruction ran. Instructions that run at once, on several devices or threads, count
      each.
    """
    ran = list(ran)
    if not ran:
        return "profile: the trace names no instruction of this program"
    by_scope: dict[str, float] = collections.defaultdict(float)
    by_name: dict[str, float] = collections.defaultdict(float)
    for event in ran:
        by_name[event.name] += event.stop - event.start
        by_scope[scope_of[event.name]] += event.stop - event.start
    total = sum(by_name.values())
    idle = []
    for device in {event.device for event in ran}:
        spans = [(event.start, event.stop) for event in ran if event.device == device]
        length = max(stop for _, stop in spans) - min(start for start, _ in spans)
        idle.append(1 - busy(spans) / length if length else 0.0)

    def lines(times: Mapping[str, float]) -> list[str]:
        longest = sorted(times.items(), key=lambda item: -item[1])[:SHOWN]
        return [f"  {t / steps / 1e6:10.2f} ms  {100 * t / total:5.1f} %  {n}" for n, t in longest]

    still = 100 * sum(idle) / len(idle)
    return "\n".join(
        [
            f"profile of {steps} steps; nothing ran in {still:.1f} % of the time",
            "a step, by scope:",
            *lines(by_scope),
            "the longest operations:",
            *lines({f"{name}: {scope_of[name]}": time for name, time in by_name.items()}),
        ]
    )
