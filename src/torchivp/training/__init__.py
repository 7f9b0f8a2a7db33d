"""Training what a differential equation depends on."""

from torchivp.training.callbacks import Callback, MLflow, TensorBoard, WandB
from torchivp.training.history import EpochRecord, History
from torchivp.training.loop import train
from torchivp.training.shooting import Shooting
from torchivp.training.video import Video

__all__ = ["Callback", "EpochRecord", "History", "MLflow", "Shooting", "TensorBoard", "Video", "WandB", "train"]
