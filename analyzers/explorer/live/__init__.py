"""Follow a run that is being recorded: a served page, and alerts on the terminal.

`readings` reads every new commit, `alerts` judges the readings, `geometry_job` computes
geometry relative to a chosen target in the background, and `server` serves the page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
