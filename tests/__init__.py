"""Tests of Remit; the folders go from pure decisions to the whole pipeline."""
