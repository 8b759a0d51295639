"""Measurements of speed, memory and accuracy; each prints every number that is quoted anywhere."""
