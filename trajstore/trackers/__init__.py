"""Send what is recorded to experiment trackers.

`Reporter` says where values go and how often. Sinks write to one tracker each: `TensorBoard`,
`WeightsAndBiases`, `MLflow` and `Trackio`; anything with the methods of `Sink` is a sink too.
`rows` turns recorded rows into values, and `reports` sends them in a thread of its own, so that
neither training nor recording waits. This package needs neither torch nor a store, and imports
a tracker's library only when its sink is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
