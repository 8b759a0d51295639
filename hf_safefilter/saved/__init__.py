"""Rows and decisions on disk, with the steps that made their columns."""
