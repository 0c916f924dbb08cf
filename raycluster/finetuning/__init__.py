"""Fine-tune the encoder on its own confident clusters (SEIC, stage 2)."""
