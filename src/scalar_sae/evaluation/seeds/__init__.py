"""How alike SAEs are that were trained from different seeds."""
