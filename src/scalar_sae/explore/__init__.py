"""The notebook interface: the edges of a pair, circuits made of some of them, and single latents."""
