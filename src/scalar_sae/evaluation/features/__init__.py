"""Features: examples, logits, judged explanations."""
