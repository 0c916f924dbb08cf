"""Losses that several methods share, one file for each loss."""
