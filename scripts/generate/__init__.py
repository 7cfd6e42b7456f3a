"""Generates the JSON schemas and the reference pages from the code: `python -m scripts.generate`."""
