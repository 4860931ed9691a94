"""What the methods share: selection, dead latents, sparsity control, site groups."""
