"""Proof under faults: `python -m tests.faults --help`."""
