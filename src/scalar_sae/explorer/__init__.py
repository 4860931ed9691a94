"""The explorer: a page in the user's browser that walks a circuit and tests it (docs/explorer.md)."""
