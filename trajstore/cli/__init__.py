"""The command ``traj-store``."""
