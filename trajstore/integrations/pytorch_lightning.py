"""Record what a ``Trainer`` of the package ``pytorch_lightning`` does."""

from pytorch_lightning import Callback

from trajstore.integrations.lightning_hooks import LightningHooks


class TrajectoryCallback(LightningHooks, Callback):
    """As that of `trajstore.integrations.lightning`, for trainers of this package."""
