"""The results of a model on the images: assignments, cluster names, scores, and the report."""
