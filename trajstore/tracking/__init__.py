"""Follow parameters and gradients on the device that trains."""
