"""Linen layers: a functional core and a thin module each."""
