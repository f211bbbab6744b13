"""Chaos: what was accepted is delivered exactly once in effect, whatever dies. `make chaos KILLS=50 SEED=1`.

Each part is a module with `run(options) -> Outcome`, named in `tests/chaos/__main__.py`.
"""
