"""Learning methods: each file has `make(...) -> Method`; its name is its registration."""

from jaxequi.methods._probe import with_probe as with_probe
