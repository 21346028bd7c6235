"""Containers for real: a Docker engine without a registry, and the smoke run over the compose stack."""
