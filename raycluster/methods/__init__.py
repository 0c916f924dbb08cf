"""The clustering methods, one file a paper."""
