"""Cluster millions of images without labels on Ray."""
