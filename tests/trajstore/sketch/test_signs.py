from typing import Any

import numpy as np
import pytest

from trajstore.sketch.signs import Role, random_bytes, random_signs

# Bytes of the first release. They must not change, because stored sketches need them.
KNOWN_BYTES = [
    pytest.param(
        0,
        Role.FOLD,
        0,
        "9bd8e40864baf402b2c5a89c0b2bd63d",
        id="zero key, zero counter",
    ),
    pytest.param(
        12345, Role.STEP, 678, "4a3f7d3c47ca8e59183e3edea97d780a", id="step of a run"
    ),
    pytest.param(
        2**64 - 1, Role.STEP, 2**62, "495025", id="largest seed, part of a word"
    ),
]

STREAMS = [
    pytest.param({"seed": 8}, id="seed"),
    pytest.param({"seed": 7 + 2**32}, id="high half of the seed"),
    pytest.param({"role": Role.FOLD}, id="role"),
    pytest.param({"role": Role.PROBE_FOLD}, id="other role"),
    pytest.param({"step": 4}, id="next step"),
    pytest.param({"step": 3 + 2**32}, id="high half of the step"),
]


@pytest.mark.parametrize(("seed", "role", "step", "expected"), KNOWN_BYTES)
def test_bytes_never_change(seed, role, step, expected):
    n = len(expected) // 2
    assert random_bytes(n, seed=seed, role=role, step=step).tobytes().hex() == expected


def test_roles_keep_their_numbers():
    # The role is one of two words of the key, so another number would change the format.
    assert {role.name: int(role) for role in Role} == {
        "FOLD": 0,
        "STEP": 1,
        "PROBE_ROWS": 2,
        "PROBE_FOLD": 3,
        "WINDOW": 4,
        "DISPLACEMENTS": 5,
    }


def test_highest_bit_comes_first_and_one_is_plus():
    byte = int(random_bytes(1, seed=12345, role=Role.STEP, step=678)[0])
    expected = [1 if digit == "1" else -1 for digit in f"{byte:08b}"]
    signs = random_signs(8, seed=12345, role=Role.STEP, step=678)
    assert signs.dtype == np.float32
    assert signs.tolist() == expected


@pytest.mark.parametrize("change", STREAMS)
def test_streams_are_independent(change):
    n = 1 << 16
    stream: dict[str, Any] = {"seed": 7, "role": Role.STEP, "step": 3}
    a = random_signs(n, **stream)
    b = random_signs(n, **stream | change)
    # Five standard errors of a mean of n independent products, at every small shift.
    for shift in range(9):
        assert abs(np.mean(a[shift:] * b[: n - shift])) < 5 / np.sqrt(n - shift)


def test_steps_do_not_overlap():
    # A counter that moved with the step by single blocks would repeat words.
    words = [
        random_bytes(8 * 256, seed=1, role=Role.STEP, step=step).view("<u8")
        for step in range(64)
    ]
    assert len(np.unique(words)) == 64 * 256


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 63, 64, 65, 1000])
def test_fewer_signs_are_a_prefix_of_more(n):
    longer = random_signs(4096, seed=5, role=Role.STEP, step=2)
    np.testing.assert_array_equal(
        random_signs(n, seed=5, role=Role.STEP, step=2), longer[:n]
    )
    packed = random_bytes(4096, seed=5, role=Role.STEP, step=2)
    np.testing.assert_array_equal(
        random_bytes(n, seed=5, role=Role.STEP, step=2), packed[:n]
    )


def test_signs_are_balanced_in_every_bit_of_a_byte():
    n = 1 << 17
    signs = random_signs(8 * n, seed=3, role=Role.FOLD)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    # Five standard errors of a mean of n signs.
    assert np.abs(signs.reshape(n, 8).mean(0)).max() < 5 / np.sqrt(n)


@pytest.mark.parametrize("count", [8, 13, 64, 1000, 4096 + 37])
def test_torch_draws_the_same_signs(count):
    torch = pytest.importorskip("torch")
    from trajstore.sketch_torch.signs import SignsOnDevice

    draw = SignsOnDevice(count, torch.device("cpu"))
    for step in (0, 5, 2**33):
        for seed in (0, 2**64 - 1):
            expected = random_signs(count, seed=seed, role=Role.STEP, step=step)
            np.testing.assert_array_equal(draw(step, seed).numpy(), expected)
