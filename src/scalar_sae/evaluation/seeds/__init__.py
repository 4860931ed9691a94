"""Agreement between SAEs that were trained from different seeds."""
