"""Clustering building blocks on tensors: k-means, neighbors, scores."""
