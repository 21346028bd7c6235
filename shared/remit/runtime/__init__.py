"""What every service runs on: one engine, one ledger, one way to start and to die. Needs the extra `services`."""
