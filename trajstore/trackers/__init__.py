"""Send what is recorded to experiment trackers.

`Reporter` says where values go and how often. Sinks write to one tracker each, in the modules
`tensorboard`, `wandb`, `mlflow` and `trackio`, which import their libraries and are imported by
`open_sink` only; anything with the methods of `Sink` is a sink too. `rows` turns recorded rows
into values, and `reports` sends them in a thread of its own, so that neither training nor
recording waits. `blow_ups` tells losses that alarm from others. This package needs neither torch nor a store.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
