"""Test ``analyzers.curvature.anchor_norms``."""

from pathlib import Path

import dask
import numpy as np
import pytest

from analyzers.curvature import anchor_norms
from tests.analyzers.laziness import fail_if_computed
from trajstore import open_run


@pytest.mark.parametrize("parts", ["whole", "in parts"])
def test_each_step_has_the_norm_of_its_anchor(
    example_run: Path, monkeypatch: pytest.MonkeyPatch, parts: str
):
    run = open_run(example_run)
    if parts == "in parts":
        monkeypatch.setattr(anchor_norms, "PART", 1024)
        monkeypatch.setattr(anchor_norms, "VALUES", 28)
    with dask.config.set(scheduler=fail_if_computed):
        found = anchor_norms.anchor_norms(run)
    assert found.dims == ("step", "layer")
    assert found.dtype == np.float64
    assert found.data.numblocks[0] == (1 if parts == "whole" else 9)
    references = [
        run.layout.unflatten(run.stored.anchors.decode(c, slice(0, run.layout.size)))
        for c in range(run.n_windows)
    ]
    expected = [
        [np.linalg.norm(tensor.astype(np.float64)) for tensor in references[c].values()]
        for c in run.stored.array("window")[:]
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
