"""Learning methods: each file has `make(...) -> Method`; its name is its registration."""
