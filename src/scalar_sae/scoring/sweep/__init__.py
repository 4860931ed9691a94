"""The sweep: every downstream latent recomputed from its kept edges, for all counts at once."""
