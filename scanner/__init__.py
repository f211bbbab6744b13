"""Scanning files for what has no business in them: rule sets, the engine, and the process with next to no rights.

Both sides use it: the hub on what is published, a terminal on its own programs. It imports `protocol` and nothing else.
"""
