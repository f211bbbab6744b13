"""Measurements: `python -m bench.figures`."""
