"""The recorder: optimizer hooks, the write queue and checkpoints."""
