"""Measurements of speed and memory; every speed that the project states comes from here."""
