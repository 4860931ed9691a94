"""One file a method; `registry` lists them."""
