"""A callback that records the training of a ``pytorch_lightning`` ``Trainer``."""

from pytorch_lightning import Callback

from trajstore.integrations.lightning_hooks import LightningHooks


class TrajectoryCallback(LightningHooks, Callback):
    """The callback of `trajstore.integrations.lightning`, for ``pytorch_lightning`` trainers."""
