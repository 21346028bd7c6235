"""tokens: evaluates again and mints one call's credential.

consumes   approved actions; core `redrive.tokens`
publishes  tokenized, refused
state      token signing keys, JWKS
secrets    token signing key, event signing key
if down    no new tokens; old ones expire in seconds
"""
