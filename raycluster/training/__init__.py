"""Distributed training of the heads."""
