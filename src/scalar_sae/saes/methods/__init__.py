"""SAE methods, one file per method. `registry.py` lists them."""
