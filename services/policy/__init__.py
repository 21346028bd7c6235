"""policy: says allow, ask or deny, and why.

consumes   proposed actions
publishes  evaluated
state      registry and policy bundle (cache)
secrets    event signing key
if down    actions wait; nothing is allowed
"""
