"""The folder of a run: whose it is, who writes in it now, and the small files in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxequi.errors import Refusal, Unwritable
from jaxequi.train import log, provenance, trackers

CONFIG_FILE = "config.json"
EXAMPLES_FILE = "examples.npz"  # the first images of the first batch, for the report
CHECKPOINTS = "checkpoints"
LOCK_FILE = "lock"
HEARTBEAT = 10.0  # seconds between two signs of life of a lock's owner
# What the system says of a disk as a whole, without the name of a file.
OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
AT_LEAST = 2**16  # bytes that a folder must take in to be writable
SILENCE = 60.0  # seconds without one after which an owner on another host counts as dead


def check(workdir: pathlib.Path, config: Mapping[str, Any], free: Sequence[str] = ()) -> bool:
    """See that a run of a config may use a folder; nothing is written.

    A folder whose run never reached a checkpoint has nothing to lose and may be begun anew.

    Args:
      free: dotted fields that may differ.

    Returns:
      Whether there is a checkpoint to go on from.

    Raises:
      ValueError: it cannot be written, or it belongs to a run of another config (with the
        difference).
    """
    there = workdir
    while not os.path.lexists(there) and there != there.parent:  # a link to nowhere is in the way
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = "is no folder" if not there.is_dir() else "may not be written"
        raise Refusal(
            f"workdir {workdir} cannot be used: {there} {problem}. Give a --workdir that can be "
            "written."
        )
    begun = (workdir / CHECKPOINTS).is_dir() and any(
        child.name.isdigit() for child in (workdir / CHECKPOINTS).iterdir()
    )
    file = workdir / CONFIG_FILE
    if not begun or not file.exists():
        return begun
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise Refusal(f"{file} cannot be read ({error}); give another --workdir") from error
    different = difference(found, json.loads(json.dumps(config)), free)
    if different:
        raise Refusal(
            f"workdir {workdir} belongs to a run of another config (- there, + here):\n"
            + "\n".join(different)
            + "\nGive another --workdir, or the config of that run."
        )
    return True


@contextlib.contextmanager
def held(workdir: pathlib.Path, config: Mapping[str, Any], begun: bool) -> Iterator[None]:
    """Make the folder, keep other runs out of it, and write down the config and its origin.

    Raises:
      ValueError: another run that lives is writing there, or it cannot be written.
    """
    if jax.process_index() != 0:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(Lock(workdir / LOCK_FILE))
            if not begun:  # what a run left that never reached a checkpoint
                shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
                for name in (log.METRICS_FILE, trackers.IDS):
                    (workdir / name).unlink(missing_ok=True)
            if not begun or not (workdir / CONFIG_FILE).exists():
                about = provenance.about()
                for name, content in ((provenance.ABOUT_FILE, about), (CONFIG_FILE, config)):
                    part = workdir / f"{name}.part"
                    part.write_text(json.dumps(content, indent=2) + "\n")
                    part.replace(workdir / name)
        except OSError as error:
            if error.errno in OF_A_DISK:
                raise
            raise Refusal(
                f"workdir {workdir} cannot be used: {error.strerror} ({error.filename}). Give a "
                "--workdir that can be written."
            ) from error
        yield


def check_room(folder: pathlib.Path, needed: int, what: str = "a checkpoint") -> None:
    """See that a disk has room, before anything is written.

    Args:
      needed: bytes.

    Raises:
      Unwritable: it has not.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    room = os.statvfs(there)
    free = room.f_bavail * room.f_frsize
    if free < needed + AT_LEAST or (room.f_files and not room.f_favail):
        reason = os.strerror(errno.ENOSPC)
        raise Unwritable(_unwritable(folder, f"{reason}: {what} needs {log.size(needed)}"))


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Tell the errors of a folder that can no longer be written from all others.

    Libraries raise what the system says in their own ways: with a file's name, without, or as a
    text; a disk that is named by none of them is asked.

    Raises:
      Unwritable: in place of such an error.
    """
    try:
        yield
    except (Refusal, Unwritable):
        raise
    except Exception as error:
        reason = _reason(folder, error)
        if reason is None:
            raise
        raise Unwritable(_unwritable(folder, reason)) from error


def _unwritable(folder: pathlib.Path, reason: str) -> str:
    there = next(f for f in (folder.absolute(), *folder.absolute().parents) if f.exists())
    room = os.statvfs(there)
    free = f"{log.size(room.f_bavail * room.f_frsize)} are free"
    if room.f_files:  # some file systems have no number of them
        free += f", and room for {room.f_favail} more files"
    return (
        f"{folder} cannot be written: {reason}; {free}. Make room, or make it writable, and give "
        "the same command again: it goes on from the newest checkpoint that is there."
    )


def _reason(folder: pathlib.Path, error: BaseException | None) -> str | None:
    """What the system said of a folder, in an error or in those that led to it."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, OSError) and _inside(folder, error.filename):
            return f"{error.strerror} ({error.filename})"
        if number in OF_A_DISK and error.filename is None and not _takes_in(folder):  # type: ignore[attr-defined]
            return os.strerror(number)
        text = str(error)
        if not isinstance(error, OSError) and str(folder.absolute()) in text:  # of tensorstore
            # Not the folder itself: a checkpoint in the making may have made it again.
            if not (folder / CONFIG_FILE).exists():
                return os.strerror(errno.ENOENT)
            for one in (*OF_A_DISK, errno.ENOENT, errno.EACCES, errno.EPERM):
                if os.strerror(one) in text:
                    return os.strerror(one)
        error = error.__cause__ or error.__context__
    return None


def _inside(folder: pathlib.Path, file: Any) -> bool:
    try:
        return file is not None and pathlib.Path(os.fsdecode(file)).absolute().is_relative_to(
            folder.absolute()
        )
    except TypeError:  # the number of an open file
        return False


def _takes_in(folder: pathlib.Path) -> bool:
    """Whether some bytes can be written in a folder now."""
    file = folder / f"room-{uuid.uuid4().hex}"
    try:
        file.write_bytes(b"\0" * AT_LEAST)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    return True


class Lock:
    """A file that says who writes in a folder; one whose owner died does not block.

    On the owner's machine its process is looked up. From elsewhere, over a shared file system, the
    owner's signs of life count: it touches the file every `HEARTBEAT` seconds, and the clock is
    the file system's own.
    """

    def __init__(self, file: pathlib.Path):
        self.file = file
        self.mine = {**_this_process(), "id": uuid.uuid4().hex}
        self.released = threading.Event()

    def __enter__(self) -> Lock:
        with self._alone():
            self._take()
        self.beat = threading.Thread(target=self._touch, daemon=True, name="lock")
        self.beat.start()
        return self

    def _take(self) -> None:
        while not self._taken():
            owner = self._owner()
            if owner is not None and self._alive(owner):
                raise Refusal(
                    f"workdir {self.file.parent} is in use by process {owner.get('process')} on "
                    f"{owner.get('host')}. Wait for it or stop it, or give another --workdir. (If "
                    f"that process is gone for good, remove {self.file}.)"
                )
            with contextlib.suppress(FileNotFoundError):
                grave = self.file.with_name(f"{LOCK_FILE}-{self.mine['id']}")
                self.file.rename(grave)
                grave.unlink()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one heir at a time look and take over; else one might bury what another just took.

        A file system that cannot lock folders leaves a moment in which two might.
        """
        folder = os.open(self.file.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def __exit__(self, *error: object) -> None:
        self.released.set()
        self.beat.join()
        owner = self._owner()
        if owner is not None and owner.get("id") == self.mine["id"]:
            self.file.unlink(missing_ok=True)

    def _taken(self) -> bool:
        # Written beside and linked, so that nobody ever reads half a lock.
        part = self.file.with_name(f"{LOCK_FILE}-{self.mine['id']}")
        part.write_text(json.dumps(self.mine))
        try:
            os.link(part, self.file)
        except FileExistsError:
            return False
        finally:
            part.unlink()
        return True

    def _owner(self) -> dict[str, Any] | None:
        """Who the file says it is; an empty answer for a file that says nothing."""
        try:
            owner = json.loads(self.file.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return owner if isinstance(owner, dict) else {}

    def _alive(self, owner: Mapping[str, Any]) -> bool:
        here = _this_process()
        if all(owner.get(name) == here[name] for name in ("host", "boot")):
            return _started(int(owner.get("process", 0))) == owner.get("started")
        clock = self.file.with_name(f"{LOCK_FILE}-{self.mine['id']}")
        try:
            clock.touch()
            silence = clock.stat().st_mtime - self.file.stat().st_mtime
        except FileNotFoundError:
            return False
        finally:
            clock.unlink(missing_ok=True)
        return silence < SILENCE

    def _touch(self) -> None:
        while not self.released.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self.file)


def _this_process() -> dict[str, Any]:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "process": os.getpid(),
        "started": _started(os.getpid()),
    }


def _started(process: int) -> str | None:
    """When a process of this machine began, None if there is no such process.

    A process number alone is not enough: numbers come again.
    """
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text()
        state, *rest = stat.rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except FileNotFoundError:
        if pathlib.Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError):
        return None
    try:  # a system without /proc
        os.kill(process, 0)
    except OSError:
        return None
    return "unknown"


def difference(old: Any, new: Any, free: Sequence[str] = (), at: str = "") -> list[str]:
    """Lines `- field = value` and `+ field = value` for each field that differs."""
    if at in free:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        missing = object()
        lines = []
        for name in sorted(old.keys() | new.keys()):
            below = f"{at}.{name}" if at else name
            before, after = old.get(name, missing), new.get(name, missing)
            if before is missing and below not in free:
                lines.append(f"+ {below} = {json.dumps(after)}")
            elif after is missing and below not in free:
                lines.append(f"- {below} = {json.dumps(before)}")
            else:
                lines += difference(before, after, free, below)
        return lines
    if old == new:
        return []
    return [f"- {at} = {json.dumps(old)}", f"+ {at} = {json.dumps(new)}"]


def save_arrays(file: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Write the numpy arrays among some values into an npz file, whole or not at all."""
    if jax.process_index() == 0:
        part = file.with_suffix(".part.npz")
        kept: dict[str, Any] = {k: v for k, v in arrays.items() if isinstance(v, np.ndarray)}
        try:
            np.savez(part, **kept)
            part.replace(file)
        finally:
            with contextlib.suppress(OSError):  # half of it would hold the room that it lacked
                part.unlink(missing_ok=True)
