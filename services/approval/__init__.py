"""approval: all human authority enters here.

consumes   evaluated actions; human commands on `human.*`
publishes  approval_requested, approved, refused, revoked; granted, amended, revoked, exhausted remits
state      stop rows, blocks, open approvals, remits and their budgets, outbox (Postgres schema control)
secrets    event signing key
if down    nobody can approve; nothing is allowed
"""
