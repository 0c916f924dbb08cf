"""Building blocks of clustering on tensors: k-means, Ward, neighbors, whitening, voting, scores."""
