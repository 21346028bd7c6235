"""How the executor reaches tools: egress rules, credentials, and one connector per kind of tool."""
