"""Losses shared by several methods, one file a loss."""
