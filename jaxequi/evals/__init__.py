"""Evaluations of features: each file has `evaluate(features, ...) -> dict[str, float]`."""
