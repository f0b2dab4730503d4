"""Sketches of sums of displacements are unbiased."""

import numpy as np
import pytest

from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.format.sketch_size import sketch_fields
from trajstore.sketch.displacement_sum import DisplacementSum
from trajstore.sketch.sketch import probes_of, sketch_of


@pytest.mark.parametrize(("n_params", "bits"), [(20_000, 1024), (2000, 65536)])
def test_the_energy_is_that_of_the_fold(n_params: int, bits: int):
    spec = RunSpec.from_json(
        {
            "names": ["a"],
            "shapes": [[n_params]],
            "seed": 0,
            **sketch_fields(n_params, bits),
            "basis": 3,
            "probes": 256,
            "steps_per_epoch": None,
            "reference_every": None,
            "total_steps": None,
            "exact": False,
        }
    )
    layout = Layout(spec.names, spec.shapes)
    probes = probes_of(spec, layout)
    size = n_params if spec.is_packed else layout.size
    total = np.random.default_rng(0).standard_normal(size, np.float32)
    ratios = []
    for window in range(20):
        code = DisplacementSum(
            sketch=sketch_of(spec, layout), probes=probes, window=window
        )
        decoded = code.decode(*code.encode(total))
        fold = probes.fold(total, probes.row_signs)
        ratios.append(decoded.energy / np.square(fold, dtype=np.float64).sum())
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)
