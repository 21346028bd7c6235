"""What Remit runs on: broker, database, keys, provisioning, and the embedded forms of them that demo and tests start."""
