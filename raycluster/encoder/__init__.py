"""Embeddings: open_clip models and the Ray Data stage that streams pictures through them."""
