"""The text side: the vocabulary of nouns and the text counterpart of each image."""
