"""Test distances, and errors of their means, where gradients are not finite."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers
from tests.analyzers.geometry.descent import by_hand, recorded

pytest.importorskip("torch")


def test_distances_keep_their_errors_without_gradients(tmp_path: Path):
    def spoil(step: int, gradient: Any) -> None:
        if 12 < step < 24:  # all steps of the second epoch but one
            gradient[..., 0] = float("nan")

    options = {"sketch_bits": 1024, "probes": 64}
    healthy, spoilt = (
        analyzers.path_geometry(recorded(tmp_path / name, train, **options)).compute()
        for name, train in (
            ("healthy.zarr", by_hand),
            ("spoilt.zarr", partial(by_hand, spoil=spoil)),
        )
    )
    assert np.isnan(spoilt["gamma"][13:24]).all()
    assert (spoilt["distance_stderr"][13:24] > 0).all()
    expected, means = map(analyzers.epoch_means, (healthy, spoilt))
    ratio = (means["distance_stderr"] / expected["distance_stderr"]).sel(epoch=1)
    assert 0.3 < ratio < 30  # the sum of the gradients is not known
    assert means["n_missing"].values.tolist() == [0, 11, 0, 0]
    assert means["distance_n_steps"].values.tolist() == [12, 12, 12, 12]
    assert means["eb_n_steps"].values.tolist() == [12, 1, 12, 12]
