"""The stages of a run: checked, planned, carried out; new pictures for a model; status and doctor."""
