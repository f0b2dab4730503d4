from .along_path import losses_on_plane, losses_towards
from .chords import losses_between
from .noise import noise_gradients
from .replaying import OtherTrainingError, replay
from .restored_state import restored_state
from .setup import TrainingSetup

__all__ = [
    "OtherTrainingError",
    "TrainingSetup",
    "losses_between",
    "losses_on_plane",
    "losses_towards",
    "noise_gradients",
    "replay",
    "restored_state",
]
