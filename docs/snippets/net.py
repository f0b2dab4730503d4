"""A network to plan for: `traj-store plan --model net:make_net --steps 2000`."""

from torch import nn


def make_net() -> nn.Module:
    """Build the network that will be trained."""
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
