"""What a GPU does with this package, in under eight minutes: `python -m benchmarks.gpu` (see __main__.py)."""
