"""Measures of a whole set: each file has `SETS`, `reads(**options)` and `evaluate(sets, **options)`."""
