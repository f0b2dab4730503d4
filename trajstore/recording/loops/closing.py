"""Tell what a recording lacks when it is closed."""

from collections.abc import Iterator
from typing import Final

from trajstore.recording.loops.watch import LoopWatch, added_message
from trajstore.recording.session import Session
from trajstore.tracking.backends.memory import UnrecordableStateError

UNSEEN: Final = 10
"""Number of values of a scalar after the last step from which steps seem to be missing."""


NO_STEP: Final = (
    "but the recorder saw no optimizer step and recorded nothing. Give it the optimizer whose step() "
    "is called, or put `with recorder.step():` around every update of the parameters."
)


def changes_at_end(
    session: Session, watch: LoopWatch, has_stepped: bool, is_known: bool
) -> Iterator[str]:
    """Yield warnings of parameters that have changed after the last step or without a step."""
    try:
        session.check_parameters()
    except UnrecordableStateError as error:
        yield f"These elements of the final iterate are NaN: {error}"
        return
    if has_stepped and is_known and watch.moved_at_end():
        yield (
            "The parameters have changed since the last optimizer step. Their current values are "
            "stored as the final iterate, x* of reference='final'; the rows of the steps are right. If "
            "the change is no part of training, such as weights that were averaged or loaded, close "
            "the recorder before it; if it is an update, put `with recorder.step():` around it."
        )
    n_logged = max(watch.n_logged.values(), default=0)
    have_changed = not has_stepped and session.have_parameters_changed()
    if have_changed or (n_logged and not has_stepped):
        if have_changed:
            yield f"The parameters have changed, {NO_STEP}"
        else:
            yield f"Values were logged, {NO_STEP}"
    elif n_logged >= UNSEEN:
        yield (
            f"Values were logged {n_logged} times after the last step that the recorder saw. "
            "Steps that were skipped, for example by a GradScaler, are no rows. If training "
            "went on, the optimizer that the recorder was given did not take these steps, and "
            "they are not recorded: make a recorder for each optimizer and its model."
        )


def late_additions(session: Session, watch: LoopWatch, step: int) -> Iterator[str]:
    """Yield warnings of tensors that are not recorded, and of steps that were not planned."""
    try:
        change = watch.held.change()
    except UnrecordableStateError as error:
        change = None
        yield f"The final iterate lacks the last change of the parameters: {error}"
    if change is not None and change.n_added:
        yield added_message(change.n_added)
    planned = session.spec.total_steps
    if planned is not None and step > planned:
        yield (
            f"{step} steps were recorded, but `total_steps` was {planned}: windows "
            f"were planned to end at step {planned}, and later steps are less precise. The "
            "recording is valid, and its errors say how precise it is. Next time, give the number "
            "of all steps."
        )
