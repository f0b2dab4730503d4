"""Sub-commands of traj-analyze: each runs one analysis and shows what it finds."""
