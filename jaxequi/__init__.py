"""Equivariant and self-supervised vision models in JAX."""
