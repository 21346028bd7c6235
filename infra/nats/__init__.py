"""The broker's configuration as data: who may publish and subscribe what, and the server file rendered from it."""
