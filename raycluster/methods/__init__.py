"""The clustering methods, one file for each paper."""
