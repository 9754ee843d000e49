"""A part of a bench in a process of its own: what it breaks, and what it holds, ends with it."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def call(patience: float, function: Callable[..., Any], *given: Any) -> Any:
    """Call a function that can be imported, with what can be pickled, and return what it returns.

    Args:
      patience: seconds after which it is given up.

    Returns:
      What the function returns, or `{"error": why}` if it raises, dies or takes longer.
    """
    spawn = multiprocessing.get_context("spawn")  # a fork would share this one's threads and locks
    here, there = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_answer, args=(there, function, given), daemon=True)
    child.start()
    there.close()  # so that the end of the child is the end of the pipe
    try:
        return here.recv() if here.poll(patience) else {"error": f"not done in {patience:g} s"}
    except EOFError:
        child.join()
        return {"error": f"its process ended with {child.exitcode}"}
    finally:
        child.kill()
        child.join()


def _answer(there: Connection, function: Callable[..., Any], given: tuple[Any, ...]) -> None:
    try:
        found = function(*given)
    except Exception as error:
        traceback.print_exc()  # whole; of a full memory it is pages
        first, *_ = str(error).splitlines() or [""]
        found = {"error": f"{type(error).__name__}: {first}"}
    there.send(found)
