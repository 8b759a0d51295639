"""Comparing several methods on one data set."""
