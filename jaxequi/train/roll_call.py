"""Who has come: asked before the processes of a cluster join, so that a missing one has a name.

JAX's own service ends a cluster that is half there by an abort, from C++, which names nobody.
"""

from __future__ import annotations

import contextlib
import socket
import time

from jaxequi.errors import Refusal

PRESENT = "all are here"


def hold(address: str, count: int, mine: int, patience: float) -> None:
    """Return when all processes of a cluster are there; afterwards the address is free again.

    Process 0 listens at its address, where JAX will, and hears the number of each of the others.

    Args:
      address: HOST:PORT of process 0.
      count, mine: processes, and which of them this is.
      patience: seconds to wait.

    Raises:
      ValueError: some are missing after that time (all others are told which), or process 0 is, or
        the address is none, or taken.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise Refusal(f"JAX_COORDINATOR_ADDRESS={address!r}: it must be HOST:PORT")
    deadline = time.monotonic() + patience
    if mine == 0:
        answer = _call(int(port), count, patience, deadline)
    else:
        answer = _answer(address, host, int(port), mine, patience, deadline)
    if answer != PRESENT:
        raise Refusal(answer)


def _call(port: int, count: int, patience: float, deadline: float) -> str:
    """Hear who comes, as process 0, and tell everybody what came of it."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    missing = set(range(1, count))
    with contextlib.ExitStack() as stack:
        try:
            server = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
        except OSError as error:
            raise Refusal(
                f"process 0 cannot listen at port {port} ({error}); let "
                "JAX_COORDINATOR_ADDRESS (by srun: JAX_COORDINATOR_PORT) name one that is free on "
                "this host"
            ) from error
        stack.enter_context(server)
        present = []
        while missing and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):
                one = stack.enter_context(server.accept()[0])
                one.settimeout(5)
                missing.discard(int(one.recv(32)))
                present.append(one)
        answer = PRESENT
        if missing:
            names = ", ".join(map(str, sorted(missing)))
            answer = (
                f"of {count} processes, {'process' if len(missing) == 1 else 'processes'} {names} "
                f"did not come within {patience:g} s; look why, and start all of them again"
            )
        for one in present:
            with contextlib.suppress(OSError):
                one.sendall(answer.encode())
    return answer


def _answer(address: str, host: str, port: int, mine: int, patience: float, deadline: float) -> str:
    """Tell process 0 that this one is here, as soon as it listens, and hear what it says."""
    while True:
        try:
            with socket.create_connection((host, port), timeout=5) as one:
                one.sendall(str(mine).encode())
                one.settimeout(max(deadline - time.monotonic(), 0) + patience)
                if answer := one.makefile().read():
                    return answer
            error: object = "it hung up"
        except OSError as found:
            error = found
        if time.monotonic() > deadline:
            return (
                f"process 0, which should listen at {address}, has not answered for "
                f"{patience:g} s ({error}); look whether it runs, and whether this host reaches "
                "that one"
            )
        time.sleep(0.5)
