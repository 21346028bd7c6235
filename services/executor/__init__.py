"""executor: verify, claim, call, record. The only service that reaches a tool, and it does so at most once an action.

Consumes   action.*.tokenized (durable `executor`); core redrive.executor
Publishes  started, executed, refused; core redrive.tokens
State      claims, budgets and the outbox (Postgres `control`); secrets: upstream credentials, decryption key, signing key
If it is down, nothing executes; claims without an outcome become `unknown` when a replica is back.
"""
