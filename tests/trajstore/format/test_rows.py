"""Test derived inner products, and that probes are rounded by at most half a level."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.trajstore.handmade import small_spec
from trajstore.format.arrays import n_columns, table_columns
from trajstore.format.rows import complete_tables, decode_probes, encode_probes, norms

N_STEPS, SIZES = 4, (6, 50, 1)

SPEC = small_spec({name: (n,) for name, n in zip("abc", SIZES, strict=True)})

# Tables are float32, and |x|^2 is a sum of three of their numbers.
RTOL = 1e-5

finite = st.floats(-(2.0**100), 2.0**100, width=32)
probe_arrays = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.just(2), st.sampled_from([1, 8])),
    elements=finite,
)


def measured_tables(seed: int):
    """Return random vectors g, r, a and u by layer, and the table of their products."""
    rng = np.random.default_rng(seed)
    columns = table_columns(SPEC)
    n_measured = min(columns["param_sq"].start, columns["grad_dot_param"].start)
    table = np.zeros((N_STEPS, len(SIZES), n_measured), np.float32)
    vectors = {
        name: [rng.normal(size=(N_STEPS, size)) for size in SIZES]
        for name in ("gradient", "anchor", "displacement", "update")
    }
    for i in range(len(SIZES)):
        g, r, a, u = (vectors[name][i] for name in vectors)
        for column, product in {
            "grad_sq": g * g,
            "grad_dot_displacement": g * a,
            "displacement_sq": a * a,
            "update_sq": u * u,
            # The first vector of the basis is the anchor.
            "grad_dot_basis": g * r,
            "displacement_dot_basis": a * r,
        }.items():
            table[:, i, columns[column].start] = product.sum(-1)
    anchor_sq = np.stack([(r**2).sum(-1) for r in vectors["anchor"]], -1)
    return vectors, table, anchor_sq


@pytest.mark.parametrize("seed", range(3))
def test_products_with_the_parameters_follow_from_products_with_the_anchor(seed: int):
    vectors, measured, anchor_sq = measured_tables(seed)
    table = complete_tables(measured, anchor_sq, SPEC)
    assert table.dtype == np.float32
    assert table.shape == (N_STEPS, len(SIZES), n_columns(SPEC))
    np.testing.assert_array_equal(table[..., : measured.shape[-1]], measured)
    columns = table_columns(SPEC)
    for i in range(len(SIZES)):
        g, r, a = (vectors[k][i] for k in ("gradient", "anchor", "displacement"))
        param_sq = ((r + a) ** 2).sum(-1)
        grad_dot_param = (g * (r + a)).sum(-1)
        scale = (g**2).sum(-1) + (r**2).sum(-1) + (a**2).sum(-1)
        found = table[:, i, columns["param_sq"].start]
        assert np.all(np.abs(found - param_sq) <= RTOL * scale)
        found = table[:, i, columns["grad_dot_param"].start]
        assert np.all(np.abs(found - grad_dot_param) <= RTOL * scale)


def test_rounding_does_not_make_a_squared_norm_negative():
    columns = table_columns(SPEC)
    _, measured, _ = measured_tables(0)
    measured = np.zeros_like(measured)
    measured[..., columns["displacement_sq"].start] = 1
    measured[..., columns["displacement_dot_basis"].start] = -1
    anchor_sq = np.full(measured.shape[:2], np.nextafter(1, 0))
    table = complete_tables(measured, anchor_sq, SPEC)
    np.testing.assert_array_equal(table[..., columns["param_sq"].start], 0)


def test_norms_are_taken_over_all_layers():
    vectors, measured, anchor_sq = measured_tables(0)
    found = norms(complete_tables(measured, anchor_sq, SPEC), SPEC)
    parameters = [
        r + a for r, a in zip(vectors["anchor"], vectors["displacement"], strict=True)
    ]
    for name, parts in {
        "grad_norm": vectors["gradient"],
        "update_norm": vectors["update"],
        "param_norm": parameters,
    }.items():
        expected = np.linalg.norm(np.concatenate(parts, -1), axis=-1)
        np.testing.assert_allclose(found.pop(name), expected, rtol=RTOL)
    assert found == {}


def test_without_a_basis_no_products_with_parameters_are_derived():
    spec = replace(SPEC, basis=0)
    rng = np.random.default_rng(0)
    measured = rng.random((N_STEPS, len(SIZES), n_columns(spec)), np.float32)
    anchor_sq = np.ones(measured.shape[:2])
    table = complete_tables(measured, anchor_sq, spec)
    np.testing.assert_array_equal(table, measured, strict=True)
    found = norms(table, spec)
    assert set(found) == {"grad_norm", "update_norm"}
    grad_sq = measured[..., table_columns(spec)["grad_sq"].start].sum(1)
    np.testing.assert_allclose(found["grad_norm"], np.sqrt(grad_sq), rtol=1e-6)


@given(probes=probe_arrays)
def test_probes_are_rounded_by_at_most_half_a_level(probes):
    encoded = encode_probes(probes)
    gradient, displacement = decode_probes(encoded)
    largest = np.abs(probes).max(-1, keepdims=True).astype(np.float64)
    # The factor 1.001 covers the float32 quotient. float16 has 11 bits of precision, and a
    # spacing of 2**-24 for the smallest numbers.
    gradient_error = np.abs(gradient - probes[:, 0])
    assert np.all(gradient_error <= 1.001 * largest[:, 0] / 254)
    bound = np.maximum(np.abs(probes[:, 1]) * 2.0**-11, largest[:, 1] * 2.0**-25)
    assert np.all(np.abs(displacement - probes[:, 1]) <= 1.001 * bound)


def test_probes_are_stored_in_few_bits():
    probes = np.random.default_rng(0).normal(size=(3, 2, 8)).astype(np.float32)
    encoded = encode_probes(probes)
    assert {name: (a.dtype.name, a.shape) for name, a in encoded.items()} == {
        "gradient_probes": ("int8", (3, 8)),
        "displacement_probes": ("float16", (3, 8)),
        "probe_scales": ("float32", (3, 2)),
    }
    assert np.abs(encoded["gradient_probes"]).max(-1).tolist() == [127] * 3


def test_probes_of_zero_vectors_are_zero():
    zeros = np.zeros((2, 2, 8), np.float32)
    for decoded in decode_probes(encode_probes(zeros)):
        np.testing.assert_array_equal(decoded, np.zeros((2, 8)), strict=True)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_finite_has_a_scale_that_is_not_finite(broken: float):
    probes = np.ones((2, 2, 8), np.float32)
    probes[1, 0, 3] = broken
    encoded = encode_probes(probes)
    expected = [[True, True], [False, True]]
    np.testing.assert_array_equal(np.isfinite(encoded["probe_scales"]), expected)
    np.testing.assert_array_equal(encoded["gradient_probes"], [[127] * 8, [0] * 8])
