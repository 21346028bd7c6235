"""Audit: keeps every signed event as a link of a hash chain, shows what they add up to, and closes each action with a receipt.

Consumes ACTIONS, REMITS, DLQ and ADVISORIES whole (durable `audit` on each, own fetch loops, one active replica).
Publishes `action.*.audited`, and core `redrive.<service>` for actions that stand still.
State: Postgres schema `audit` (ledger insert-only), `control.heartbeat`, signed checkpoints in a directory of their own.
Secrets: event signing key, checkpoint key. If it is down: executions wait, because evidence gates effect.
"""
