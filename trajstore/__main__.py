"""Let ``python -m trajstore`` run ``traj-store``."""

from trajstore.cli.main import main

main()
