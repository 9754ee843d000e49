"""Measurements of a function's equivariance and invariance."""
