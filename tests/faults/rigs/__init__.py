"""Rigs: each breaks one thing in one way, is usable alone, and cleans up after itself."""
