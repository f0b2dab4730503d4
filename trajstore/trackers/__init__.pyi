from .mlflow import MLflow
from .reporter import Reporter, open_sink
from .sink import Sink
from .tensorboard import TensorBoard
from .trackio import Trackio
from .wandb import WeightsAndBiases

__all__ = [
    "MLflow",
    "Reporter",
    "Sink",
    "TensorBoard",
    "Trackio",
    "WeightsAndBiases",
    "open_sink",
]
