"""Rankings of edges: what each ranking computes, and the order that follows."""
