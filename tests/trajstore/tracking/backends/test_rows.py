"""Test views of rows as arrays."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trajstore.tracking.backends.rows import arrays_of, rows_of


def test_arrays_of_a_row_share_its_memory():
    measured = {"tables": torch.zeros(3, 2, 4), "scales": torch.zeros(3, 1)}
    rows = rows_of(measured)
    assert len(rows) == 3
    arrays = arrays_of(rows[1])
    arrays["tables"][:] = 2
    rows[1]["scales"].fill_(3)
    assert arrays["scales"].tolist() == [3]
    expected = np.zeros((3, 2, 4))
    expected[1] = 2
    np.testing.assert_array_equal(measured["tables"].numpy(), expected)
    # The views are made once.
    assert arrays_of(rows[1]) is arrays


def test_rows_without_arrays_are_viewed_when_asked():
    row = {"tables": torch.zeros(2)}
    arrays_of(row)["tables"][:] = 1
    assert row["tables"].tolist() == [1, 1]
    [elsewhere] = rows_of({"tables": torch.zeros(1, 2, device="meta")})
    assert elsewhere.arrays is None
