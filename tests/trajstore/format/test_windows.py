from collections.abc import Collection
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajstore.format.windows import DEFAULT_LENGTH, Windows


def starts(
    windows: Windows, n_steps: int, epochs_by_hand: Collection[int] = ()
) -> list[int]:
    """Return the starts of windows that a recorder chooses."""
    started, epoch_start = [0], 0
    following = windows.next_start(1, 0)
    for step in range(1, n_steps):
        by_count = windows.steps_per_epoch and step % windows.steps_per_epoch == 0
        if step in epochs_by_hand or by_count:
            epoch_start = step
        if step == following or step in epochs_by_hand:
            started.append(step)
            following = windows.next_start(step + 1, epoch_start)
    return started


# steps_per_epoch, reference_every, total_steps, number of steps, starts of windows
SCHEDULES = [
    pytest.param(
        16, None, None, 50, [0, 2, 4, 8, 16, 32, 48], id="one window per epoch"
    ),
    pytest.param(
        16, None, 48, 48, [0, 2, 4, 8, 16, 32, 40, 44, 46, 47], id="the end is known"
    ),
    pytest.param(16, None, 16, 16, [0, 2, 4, 8, 12, 14, 15], id="one epoch"),
    pytest.param(
        10, None, 30, 30, [0, 1, 2, 5, 10, 20, 25, 27, 28, 29], id="uneven halves"
    ),
    pytest.param(
        8, None, 21, 21, [0, 1, 2, 4, 8, 16, 17, 19, 20], id="a part of an epoch last"
    ),
    pytest.param(
        8, None, 16, 20, [0, 1, 2, 4, 8, 12, 14, 15, 16], id="longer than announced"
    ),
    pytest.param(
        10,
        4,
        None,
        30,
        [0, 1, 2, 4, 8, 10, 14, 18, 20, 24, 28],
        id="several windows in an epoch start over in each epoch",
    ),
    pytest.param(
        10, 4, 20, 20, [0, 1, 2, 4, 8, 10, 14, 18, 19], id="several windows, known end"
    ),
    pytest.param(
        16,
        8,
        32,
        32,
        [0, 1, 2, 4, 8, 16, 24, 28, 30, 31],
        id="windows that divide an epoch",
    ),
    pytest.param(
        5,
        16,
        None,
        40,
        [0, 2, 4, 8, 16, 32],
        id="a window spans epochs and is not cut by them",
    ),
    pytest.param(
        5, 16, 40, 40, [0, 2, 4, 8, 16, 32, 36, 38, 39], id="spans epochs, known end"
    ),
    pytest.param(10, 10, None, 25, [0, 1, 2, 5, 10, 20], id="as long as an epoch"),
    pytest.param(1, None, 5, 5, [0, 1, 2, 3, 4], id="epochs of one step"),
    pytest.param(7, 1, 5, 5, [0, 1, 2, 3, 4], id="windows of one step"),
    pytest.param(1, 8, None, 20, [0, 1, 2, 4, 8, 16], id="many epochs in a window"),
    pytest.param(16, None, 1, 1, [0], id="a run of one step"),
    pytest.param(
        None,
        None,
        None,
        1200,
        [0, 62, 125, 250, 500, 1000],
        id="no epochs, default length",
    ),
    pytest.param(
        None, 16, 40, 40, [0, 2, 4, 8, 16, 32, 36, 38, 39], id="no epochs, known end"
    ),
]

# reference_every, total_steps, epochs started by hand, number of steps, starts of windows
EPOCHS_BY_HAND = [
    pytest.param(
        8, None, (20,), 40, [0, 1, 2, 4, 8, 16, 20, 28, 36], id="counted from an epoch"
    ),
    pytest.param(
        8, None, (3,), 20, [0, 1, 2, 3, 4, 11, 19], id="an epoch among the first cuts"
    ),
    pytest.param(
        8,
        32,
        (20,),
        32,
        [0, 1, 2, 4, 8, 16, 20, 28, 30, 31],
        id="known end",
    ),
    pytest.param(8, None, (3, 4, 5), 8, [0, 1, 2, 3, 4, 5], id="short epochs"),
]


@pytest.mark.parametrize(
    ("steps_per_epoch", "reference_every", "total_steps", "n_steps", "expected"),
    SCHEDULES,
)
def test_windows_start_at_the_expected_steps(
    steps_per_epoch, reference_every, total_steps, n_steps, expected
):
    windows = Windows(
        steps_per_epoch=steps_per_epoch,
        reference_every=reference_every,
        total_steps=total_steps,
    )
    assert starts(windows, n_steps) == expected


@pytest.mark.parametrize(
    ("reference_every", "total_steps", "epochs", "n_steps", "expected"), EPOCHS_BY_HAND
)
def test_epochs_started_by_hand_start_windows(
    reference_every, total_steps, epochs, n_steps, expected
):
    windows = Windows(
        steps_per_epoch=None, reference_every=reference_every, total_steps=total_steps
    )
    assert starts(windows, n_steps, epochs) == expected


SHARED = [
    # Steps in an epoch, epochs in a window, steps in the run, recorded steps.
    pytest.param((1, 20, None), 60, [*range(11), 30, 50], id="one step an epoch"),
    pytest.param(
        (4, 3, None), 70, [0, 1, 2, *range(4, 41, 4), 52, 64], id="4 steps an epoch"
    ),
    pytest.param(
        (4, 3, 64),
        64,
        [0, 1, 2, *range(4, 41, 4), 52, 58, 61, 62, 63],
        id="known end",
    ),
]


@pytest.mark.parametrize(("options", "n_steps", "expected"), SHARED)
def test_short_epochs_share_windows_after_the_first_ten(options, n_steps, expected):
    steps_per_epoch, shared_epochs, total_steps = options
    windows = Windows(
        steps_per_epoch=steps_per_epoch,
        reference_every=None,
        total_steps=total_steps,
        shared_epochs=shared_epochs,
    )
    assert starts(windows, n_steps) == expected


def test_length_follows_from_the_known_options():
    def length(steps_per_epoch: int | None, reference_every: int | None) -> int:
        return Windows(
            steps_per_epoch=steps_per_epoch,
            reference_every=reference_every,
            total_steps=None,
        ).length

    assert DEFAULT_LENGTH == 500
    assert length(None, None) == 500
    assert length(30, None) == 30
    assert length(30, 7) == 7
    assert length(None, 7) == 7


positive = st.integers(1, 40)


@given(
    steps_per_epoch=st.none() | positive,
    reference_every=st.none() | positive,
    total_steps=st.none() | st.integers(1, 120),
    epochs=st.sets(st.integers(1, 119), max_size=5),
)
def test_windows_are_never_longer_than_an_uncut_window(
    steps_per_epoch, reference_every, total_steps, epochs
):
    windows = Windows(
        steps_per_epoch=steps_per_epoch,
        reference_every=reference_every,
        total_steps=total_steps,
    )
    started = starts(windows, 120, epochs if steps_per_epoch is None else ())
    lengths = [b - a for a, b in zip(started, [*started[1:], 120], strict=True)]
    assert min(lengths) >= 1
    assert max(lengths) <= windows.length
    if steps_per_epoch is not None and windows.length <= steps_per_epoch:
        assert set(range(0, 120, steps_per_epoch)) <= set(started)
    if total_steps is not None:
        assert total_steps - 1 in started


@given(
    steps_per_epoch=st.none() | positive,
    reference_every=st.none() | positive,
    total_steps=st.none() | st.integers(1, 200),
    step=st.integers(0, 300),
    back=st.integers(0, 100),
    shared_epochs=st.integers(1, 30),
)
def test_next_start_is_the_same_from_any_earlier_step(
    steps_per_epoch, reference_every, total_steps, step, back, shared_epochs
):
    is_shared = steps_per_epoch is not None and reference_every is None
    windows = Windows(
        steps_per_epoch=steps_per_epoch,
        reference_every=reference_every,
        total_steps=total_steps,
        shared_epochs=shared_epochs if is_shared else 1,
    )
    epoch_start = max(0, step - back)
    start = windows.next_start(step, epoch_start)
    assert step <= start < step + windows.length
    # Every step up to a start has that start as its next start, as has the start itself.
    for k in range(step, start + 1):
        assert windows.next_start(k, epoch_start) == start


@pytest.mark.parametrize(
    ("steps_per_epoch", "reference_every", "total_steps"),
    [(16, None, 48), (16, None, 16), (16, None, 5), (8, None, 21), (None, 50, 1234)],
)
def test_lengths_are_those_of_the_windows(
    steps_per_epoch: int | None, reference_every: int | None, total_steps: int
):
    windows = Windows(
        steps_per_epoch=steps_per_epoch,
        reference_every=reference_every,
        total_steps=total_steps,
    )
    borders = [*starts(windows, total_steps), total_steps]
    assert windows.lengths.tolist() == [b - a for a, b in pairwise(borders)]


def test_a_run_of_unknown_length_is_a_window():
    windows = Windows(steps_per_epoch=16, reference_every=None, total_steps=None)
    assert windows.lengths.tolist() == [16]
