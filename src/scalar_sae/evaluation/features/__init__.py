"""Features: examples of latents, their effects on the logits, and judged explanations."""
