"""Compare displacements from past anchors with differences of the anchors themselves."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trajstore.format.layout import BLOCK
from trajstore.sketch import deltas
from trajstore.sketch_torch import deltas as deltas_torch
from trajstore.tracking.past_anchors import PastAnchors

SIZE = 5 * BLOCK


@pytest.fixture(params=[BLOCK, 2 * BLOCK, 8 * BLOCK], autouse=True)
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use chunks of one block, of two blocks, and of more blocks than there are."""
    monkeypatch.setitem(deltas_torch.CHUNK, "cpu", request.param)


def walk(n_windows: int) -> tuple[list[Any], list[Any]]:
    """Return anchors in float64, and the codes of the differences between them."""
    generator = np.random.default_rng(n_windows)
    anchors, codes = [np.zeros(SIZE)], []
    for _ in range(n_windows):
        step = generator.standard_normal(SIZE).astype(np.float32)
        codes.append(deltas.encode(step))
        decoded = deltas.decode(*codes[-1])
        anchors.append(anchors[-1] + decoded)
    return anchors, codes


@pytest.mark.parametrize("n_windows", [0, 1, 2, 3, 5, 9])
@pytest.mark.parametrize("basis", [2, 3, 4])
def test_displacements_are_differences_of_anchors(basis: int, n_windows: int):
    anchors, codes = walk(n_windows)
    past = PastAnchors(basis)
    for code in codes:
        past.append(*map(torch.from_numpy, code))
    # The basis goes back no further than the first anchor.
    earlier = [anchors[max(0, n_windows - 2**j)] for j in range(basis - 1)]
    expected = np.array([anchors[-1] - e for e in earlier])

    vectors = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(1))
    chunks = [
        past.displacements(elements, 0, like=vectors)
        for elements, blocks in deltas_torch.chunks(SIZE, vectors.device)
    ]
    np.testing.assert_allclose(torch.cat(chunks, 1), expected, atol=1e-6)

    # float32 sums of 1024 products of size 1.
    products = np.einsum(
        "vbe,jbe->bvj",
        vectors.double().reshape(2, -1, BLOCK),
        expected.reshape(len(expected), -1, BLOCK),
    )
    np.testing.assert_allclose(past.products(vectors), products, atol=1e-3)


@pytest.mark.parametrize(("basis", "n_codes"), [(0, 0), (1, 0), (2, 1), (3, 2), (5, 8)])
def test_only_codes_that_the_basis_needs_are_kept(basis: int, n_codes: int):
    past = PastAnchors(basis)
    for _, code in zip(range(9), walk(9)[1], strict=True):
        past.append(*map(torch.from_numpy, code))
    assert past.addresses.shape == (2, n_codes)
    assert past.n_kept == n_codes
