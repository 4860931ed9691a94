"""Fidelity: how well reconstructions by SAEs replace the activations that the SAEs read."""
