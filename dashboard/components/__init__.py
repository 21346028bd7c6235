"""Pieces of pages: they draw what the model decided, and send foreign text through `untrusted` or `span` only."""
