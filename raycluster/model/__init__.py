"""The model that a run writes: its folder, its predictions, outliers, and drift."""
