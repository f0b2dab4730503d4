"""Evaluate a model at points of a recorded run.

`replay` computes the losses of the recorded batches at another point, `losses_between` the
losses on a chord, `losses_towards` those on the lines from iterates to a target, and
`losses_on_plane` those on the plane in which the path lies best; `restored_state` leaves a model
as it was after an evaluation in the middle of training. `noise_gradients` replaces the gradients
of a run with noise, its null model.

Imports `reading`, torch and xarray. Start reading with `replay`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
