"""Text side: the vocabulary of nouns and each image's text counterpart."""
