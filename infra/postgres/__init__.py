"""The two schemas of Remit: `control` (claims, budgets, kill switches, blocks) and `audit` (evidence and read models)."""
