"""Pipe strings: what they say, and that no string is anything but ops or a ValueError."""

from __future__ import annotations

import pytest

from jaxequi import pipes


def echo(*arguments, **keywords):
    return arguments, keywords


def flat(number=1):
    if number < 0:
        raise OverflowError("too small")
    return number


OPS = {"echo": echo, "flat": flat}


def test_ops_in_order_with_literals_alone():
    made = pipes.parse("flat | echo('a|b', (1, 2), key=[None, -0.5])|flat(3)", OPS, "op")
    assert made == [1, (("a|b", (1, 2)), {"key": [None, -0.5]}), 3]
    assert pipes.parse(" ", OPS, "op") == []


def test_a_name_may_have_dots():
    assert pipes.parse("mine.ops.echo(1)|flat", {**OPS, "mine.ops.echo": echo}, "op") == [
        ((1,), {}),
        1,
    ]


@pytest.mark.parametrize(
    ("pipe", "words"),
    [
        ("echo(" * 3000, "a pipe of 15000 characters, 'echo.*; it may have 4096"),
        ("echo(" + "9" * 10**6 + ")", "a pipe of 1000006 characters"),
        ("[" * 17 + "]" * 17, "over 16 brackets in brackets"),
        ("echo(" + "-" * 3000 + "1)", "cannot read 'echo"),
        ("echo(" + "1+" * 2000 + "1)", "cannot read 'echo"),
        ("echo(a" + ".b" * 1500 + ")", "cannot read 'echo"),
        ("echo" + "(1)" * 1000, "cannot read 'echo"),
        ("echo({[]: 1})", "cannot read"),
        ("echo(a=1, a=2)", "cannot read"),
        ("echo('\udcff')", "cannot read"),
        ("echo(\0)", "cannot read"),
        ("echo(open('x'))", "cannot read"),
        ("flat(-1)", "'flat.-1.' in a pipe: too small"),
        ("flat(1, 2)", r"it takes flat\(number=1\)"),
        ("flut", "Did you mean 'flat'"),
        ("os.path(1)", "unknown op 'os.path'"),
        ("echo().b", "cannot read 'echo"),
        ("echo" + ".b" * 1500, "unknown op 'echo.b"),
    ],
    ids=range(18),
)
def test_another_string_is_refused_in_few_words(pipe, words):
    with pytest.raises(ValueError, match=words) as caught:
        pipes.parse(pipe, OPS, "op")
    assert len(str(caught.value)) < 600
