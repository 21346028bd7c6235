"""The fault matrix, one function a row."""
