"""What asgi_datasource costs, measured beside what people write without it: both sides in one run, ratios out.

Run `scripts/bench`, or `python -m benchmarks`; `benchmarks/README.md` says what each figure means.
"""
