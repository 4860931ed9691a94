"""Components shared by several methods: selection, dead latents, sparsity control, site groups."""
