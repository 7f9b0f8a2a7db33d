"""Trajectories as datasets of `torch.utils.data`."""

from torchivp.data.series import Series, collate
from torchivp.data.simulated import SimulatedTrajectories
from torchivp.data.trajectories import TrajectoryDataset

__all__ = ["Series", "SimulatedTrajectories", "TrajectoryDataset", "collate"]
