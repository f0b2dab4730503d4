from .chords import losses_between
from .replaying import OtherTrainingError, replay
from .restored_state import restored_state
from .setup import TrainingSetup

__all__ = [
    "OtherTrainingError",
    "TrainingSetup",
    "losses_between",
    "replay",
    "restored_state",
]
