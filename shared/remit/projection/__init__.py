"""What signed events add up to in the tables people read: the projector writes it, the verifier compares it. Pure."""
