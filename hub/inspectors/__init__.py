"""Inspectors: one file per installer format, path -> the facts read from the file's own header.

`inspect` recognises the format by its first bytes and names, and hands the file to that format's reader.
"""
