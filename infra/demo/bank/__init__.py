"""A stateful bank behind MCP, the tool server of the demonstration.

It answers to one caller only, the executor, and writes every call that arrives into an fsynced log, so that "one effect" can be
counted from outside.
"""
