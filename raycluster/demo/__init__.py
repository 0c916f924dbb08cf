"""Drawn pictures and the tiny CLIP that was trained on such drawings."""
