"""Walk over the windows of a run and estimate products with the target."""
