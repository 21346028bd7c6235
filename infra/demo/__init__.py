"""The demonstration: a real tool server, a local OpenID provider and recorded tasks for an agent to work through."""
