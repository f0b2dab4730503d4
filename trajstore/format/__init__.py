"""What the bytes of a store mean: the specification of a run, its arrays, rows and windows."""
