"""Fidelity: how well SAEs stand in for the activations they read."""
