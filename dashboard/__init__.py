"""The dashboard: what people see and press. It holds no authority and decides nothing.

consumes   Postgres schema `audit`, read only; `LISTEN remit_approvals` as a hint
publishes  `human.<command>` requests to approval, each with the person's own ID token
state      none that matters: the read model is audit's, the session is the browser's
secrets    NATS seed of principal `dashboard`, OpenID client secret, cookie secret
if down    nobody approves from a browser; the `remit` command line does the same
"""
