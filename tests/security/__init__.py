"""Nobody gets in: what a strong attacker would send, and the answer it gets."""
