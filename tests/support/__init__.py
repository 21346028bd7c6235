"""Factories, servers and stand-ins shared by the tests."""
