"""What a notebook asks of the engine: the edges of a pair, circuits made of some of them, and single latents."""
