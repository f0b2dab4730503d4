"""Tell what a recording lacks when it is closed, or written before the next step begins."""

from collections.abc import Iterator
from typing import Final

from trajstore.recording.loops.watch import LoopWatch, added_message
from trajstore.recording.session import Session

UNKNOWN_END: Final = (
    "The parameters after the last step are not known: its update is NaN, and the final "
    "iterate is the last one known. Update the mapping of parameters in place, as in "
    "`parameters.update(new)`, before the recording ends."
)

UNKNOWN_UPDATE: Final = (
    "The parameters after the last step are not known yet, so its update is recorded as NaN: "
    "recorder.step() was given parameters that the step has not changed. Before flush() and "
    "state_dict(), and in recordings with a journal, update the mapping of parameters in "
    "place, as in `parameters.update(new)`."
)


def unknown_iterate(what: str, step: int) -> str:
    """Return the message of an error: a method needs parameters that are not known."""
    return (
        f"{what} needs the parameters after step {step}, which are not known: recorder.step() "
        "was given parameters that the step has not changed. Update that mapping in place, as in "
        f"`parameters.update(new)`, before {what}; or call it at the start of the block of the "
        "next recorder.step()."
    )


def changes_at_end(
    session: Session, watch: LoopWatch, *, has_stepped: bool, is_known: bool
) -> Iterator[str]:
    """Yield warnings of parameters that have changed after the last step or without a step."""
    if is_known and watch.moved_at_end():
        yield (
            "The parameters have changed since the last optimizer step. Their "
            "current values are stored as the final iterate."
        )
    if not has_stepped and session.have_parameters_changed():
        yield (
            "The parameters have changed, but the recorder saw no optimizer step and "
            "recorded nothing. Give it the optimizer whose step() is called, or put "
            "`with recorder.step():` around every update of the parameters."
        )


def late_additions(session: Session, watch: LoopWatch, step: int) -> Iterator[str]:
    """Yield warnings of tensors that are not recorded, and of steps that were not planned."""
    if (change := watch.held.change()) is not None and change.n_added:
        yield added_message(change.n_added)
    planned = session.spec.total_steps
    if planned is not None and step > planned:
        yield (
            f"{step} steps were recorded, but `total_steps` was {planned}: windows "
            f"were planned to end at step {planned}, and later steps are less precise."
        )
