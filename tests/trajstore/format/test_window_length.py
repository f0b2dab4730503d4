"""Windows are chosen from the epochs, the steps and the parameters of a run."""

from dataclasses import replace
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajstore.format.arrays import (
    ITEM_SIZE,
    KEYFRAME_EVERY,
    KEYFRAMES,
    ArraySpec,
    row_arrays,
    window_arrays,
)
from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec, validate_spec
from trajstore.format.sketch_size import sketch_fields
from trajstore.format.window_length import (
    BYTES_SHARE,
    OWN_BYTES_SHARE,
    SHORTEST,
    SHORTEST_OWN,
    begins_window,
    choose_windows,
    epoch_as_window,
    own_length,
    shared_length,
)
from trajstore.format.windows import DEFAULT_LENGTH, OWN_WINDOWS, Windows


def spec_of(
    n_params: int,
    epoch: int | None,
    total: int | None = None,
    *,
    every: int | None = None,
) -> RunSpec:
    return RunSpec.from_json(
        {
            "names": ["a"],
            "shapes": [[n_params]],
            "seed": 0,
            **sketch_fields(n_params, 65536),
            "basis": 3,
            "probes": 1024,
            "steps_per_epoch": epoch,
            "reference_every": every,
            "total_steps": total,
            "exact": False,
        }
    )


def anchor_in_rows(spec: RunSpec) -> float:
    """Return the number of rows that have as many bytes as an anchor."""
    rows = row_arrays(spec, n_metrics=0)
    anchors = window_arrays(spec, size=Layout(spec.names, spec.shapes).size)

    def n_bytes(array: ArraySpec) -> float:
        return ITEM_SIZE[array.dtype] * prod(array.inner)

    anchor = sum(map(n_bytes, anchors.values()))
    anchor -= n_bytes(anchors[KEYFRAMES]) * (1 - 1 / KEYFRAME_EVERY)
    return anchor / sum(map(n_bytes, rows.values()))


# Parameters, steps in an epoch, steps in the run; reference_every and shared_epochs.
CHOICES = {
    "long epochs": ((10_000, 200, None), (None, 1)),
    "many long epochs": ((10_000, 200, 20_000), (None, 1)),
    "few long epochs": ((10_000, 1000, 3000), (334, 1)),
    "few epochs of a large network": ((10_000_000, 1000, 3000), (500, 1)),
    "one step an epoch": ((3000, 1, None), (None, 50)),
    "one step an epoch, long run": ((3000, 1, 10_000), (None, 400)),
    "one step an epoch, very long run": ((3000, 1, 10**6), (None, 500)),
    "one step an epoch, large network": ((1_000_000, 1, None), (None, 500)),
    "large network, short run": ((1_000_000, 1, 800), (None, 100)),
    "12 steps an epoch": ((3000, 12, None), (None, 1)),
    "12 steps an epoch, large network": ((1_000_000, 12, None), (None, 42)),
    "few short epochs": ((3000, 9, 9 * OWN_WINDOWS), (None, 1)),
    "just short": ((3000, SHORTEST_OWN - 1, None), (None, 6)),
    "just long enough": ((3000, SHORTEST_OWN, None), (None, 1)),
    "just short for a large network": ((1_000_000, SHORTEST - 1, None), (None, 11)),
    "just long enough for any network": ((1_000_000, SHORTEST, None), (None, 1)),
    "no epochs": ((3000, None, 10_000), (None, 1)),
}


@pytest.mark.parametrize(("given_", "chosen"), CHOICES.values(), ids=CHOICES.keys())
def test_windows_suit_the_run(given_, chosen):
    spec, reason = choose_windows(spec_of(*given_))
    assert (spec.reference_every, spec.shared_epochs) == chosen
    assert bool(reason) == (chosen != (None, 1))
    assert not validate_spec(spec.to_json())


# Parameters and steps of a run without epochs; steps in a window.
WITHOUT_EPOCHS = {
    "no length": ((10**9, None), 500),
    "small network": ((300_000, 10**6), 500),
    "short run": ((10**9, 12_500), 500),
    "4 % of the run": ((10**9, 100_000), 4000),
    "half of the bytes": ((4_000_000, 200_000), 781),
}


@pytest.mark.parametrize(
    ("given_", "length"), WITHOUT_EPOCHS.values(), ids=WITHOUT_EPOCHS.keys()
)
def test_windows_of_runs_without_epochs_are_longer_where_anchors_are_large(
    given_, length
):
    n_params, total = given_
    spec, reason = choose_windows(spec_of(n_params, None, total))
    assert Windows.of(spec).length == length
    assert (spec.window_steps is None) == (length == DEFAULT_LENGTH) == (not reason)
    assert spec.reference_every is None
    assert not validate_spec(spec.to_json())
    rows = 1 / OWN_BYTES_SHARE * anchor_in_rows(spec)
    if total is not None and length > DEFAULT_LENGTH:
        assert length == min(round(0.04 * total), int(rows) + 1)
    else:
        assert total is None or min(0.04 * total, rows) <= DEFAULT_LENGTH


def test_users_choose_windows_themselves():
    spec = spec_of(3000, 1, 10_000, every=1)
    assert choose_windows(spec) == (spec, "")


@given(
    n_params=st.integers(1, 10**8),
    epoch=st.integers(1, 10**4),
    total=st.none() | st.integers(1, 10**6),
)
def test_chosen_windows_cost_little_and_stay_close(n_params, epoch, total):
    spec = choose_windows(spec_of(n_params, epoch, total)).spec
    length = Windows.of(spec).length
    if spec.shared_epochs > 1:
        assert epoch < SHORTEST <= length < DEFAULT_LENGTH + epoch
        assert length % epoch == 0
    elif spec.reference_every is not None:
        assert epoch > length >= SHORTEST // 2
        assert total is not None
        assert epoch > total / 8
    assert not validate_spec(spec.to_json())


@pytest.mark.parametrize("n_params", [1000, 30_000, 100_000, 300_000])
def test_anchors_take_a_share_of_the_bytes_of_steps(n_params):
    spec = spec_of(n_params, 1)
    length = shared_length(spec)
    rows_of_anchor = anchor_in_rows(spec)
    share = rows_of_anchor / length
    assert share <= BYTES_SHARE or length == DEFAULT_LENGTH
    assert share > 0.98 * BYTES_SHARE or length in {SHORTEST, DEFAULT_LENGTH}
    own = own_length(spec)
    assert rows_of_anchor / own <= OWN_BYTES_SHARE or own == SHORTEST
    assert rows_of_anchor / (own - 1) > OWN_BYTES_SHARE or own == SHORTEST_OWN


def test_epochs_begun_by_hand_begin_windows_if_these_are_long_enough():
    spec = spec_of(3000, None)

    def begins(epoch: int, n_before: int, n_in_window: int) -> bool:
        return begins_window(spec, epoch, n_before=n_before, n_in_window=n_in_window)

    assert begins(OWN_WINDOWS - 1, 1, 1)
    assert not begins(OWN_WINDOWS, SHORTEST_OWN - 1, SHORTEST - 1)
    assert begins(OWN_WINDOWS, SHORTEST_OWN - 1, SHORTEST)
    assert begins(OWN_WINDOWS, SHORTEST_OWN, SHORTEST - 1)
    longer = replace(spec, total_steps=10**6, window_steps=1000)
    assert not begins_window(longer, OWN_WINDOWS, n_before=2, n_in_window=2)
    chosen = replace(spec, reference_every=500)
    assert begins_window(chosen, OWN_WINDOWS, n_before=2, n_in_window=2)


def test_only_long_epochs_are_windows_of_trainers():
    assert epoch_as_window(None) is None
    assert epoch_as_window(SHORTEST - 1) is None
    assert epoch_as_window(SHORTEST) == SHORTEST
