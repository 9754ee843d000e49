"""Measures of whole sets: each file has `SETS`, `reads(**options)`, `evaluate(sets, **options)`."""
