"""Whole backbones."""
