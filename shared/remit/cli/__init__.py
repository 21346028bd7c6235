"""The command line for people: delegate, decide, revoke, apply the registry, verify the evidence."""
