"""Records: what is written to results.json, and what is checked when it is read."""
