"""Records: the schema of results.json, and the checks made when it is read."""
