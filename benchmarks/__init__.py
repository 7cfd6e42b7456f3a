"""Measure the costs of asgi_datasource next to alternatives without it: both sides in one run, as ratios.

Run `scripts/bench`, or `python -m benchmarks`; `benchmarks/README.md` says what each figure means.
"""
