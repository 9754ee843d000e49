"""What is wrong with the input, as a type of its own: our own faults never pass for the user's."""

from __future__ import annotations


class Refusal(ValueError):
    """What was given cannot be done: says what it is, what is allowed, and what to do.

    A program shows its message and ends with code 2. Every other error is a fault of the program,
    whose traceback should be seen.
    """


class Unwritable(Exception):
    """A folder can no longer be written: the disk is full, or it was taken away.

    What was saved before is sound: a program shows the message and ends with code 1, and the same
    command goes on once the folder can be written again.
    """
