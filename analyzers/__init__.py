"""Analyses of recorded training runs.

Each analysis takes a run and returns a labelled dataset, which `plots` can draw. Begin with
`path_geometry`, which measures every step against a target. Each topic is a package:
`geometry`, `gradients` (zigzag, lags, branches), `conditions` (alpha-beta, aiming,
Polyak-Lojasiewicz), `curvature`, `deep_linear`, and `no_wrong_turns`, which reproduces the
figures and tests the statements of one paper. In a topic, `arrays` holds functions of
arrays, `plots` draws figures, and `command` or `commands` defines sub-commands of
``traj-analyze``. All topics build on `_engine`, which walks a run window by window in Dask
tasks, and on `_execution`, which computes and stores results. This package reads runs
through `trajstore` and never imports torch.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

_NOT_LISTED = {"plots", "scales", "step_bound"}  # a module, and two deprecated names
__all__ = [name for name in _names if name not in _NOT_LISTED]
