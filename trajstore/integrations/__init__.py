"""Recording from the loops of other libraries; each module needs its library."""
