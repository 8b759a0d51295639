"""Rows and decisions on disk, with the steps that filled their columns."""
