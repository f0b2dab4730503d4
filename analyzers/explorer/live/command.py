"""The command that follows a run that is being recorded."""

import webbrowser
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from analyzers._reporting import say
from analyzers.explorer import live
from trajstore.cli.console import make_console

if TYPE_CHECKING:
    from analyzers.explorer.live.alerts import Alert


def watch(
    store: Positional[str],
    *,
    port: int = 0,
    interval: float = 1.0,
    show: Annotated[bool, arg(name="open")] = False,
) -> None:
    """Follow a run that is being recorded: a page on this machine, and alerts.

    The page shows loss, learning rate, loLR, update ratio, cosine of adjacent gradients,
    distance travelled, bytes and the time left, everything that traj-analyze explore shows,
    and lets you choose x*. Alerts are printed here too. Ctrl-C stops the command, not the run.
    If the store does not exist yet, the command waits for it.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    port : int, default: 0
        Port of the page; 0 chooses a free one.
    interval : float, default: 1.0
        Seconds between two looks at the store.
    show : bool, default: False
        Open the page in a browser.

    Raises
    ------
    ValueError
        If the interval is not positive.
    """
    if not interval > 0:
        raise ValueError(f"`interval` must be a positive number, got {interval:g}.")
    try:
        run = live.wait_for_steps(store, say=say)
    except KeyboardInterrupt:
        say("Stopped waiting.")
        return
    follower = live.Follower(
        live.Readings(run.location), interval=interval, report=_report
    )
    follower.start()

    def started(address: str) -> None:
        say(f"Page: {address}\nCtrl-C stops watching; the run goes on.")
        if show:
            webbrowser.open(address)

    try:
        live.serve(follower, port=port, started=started)
    except KeyboardInterrupt:
        say("Stopped watching.")
    finally:
        follower.close()


def _report(alert: "Alert") -> None:
    """Print an alert on the terminal."""
    text = f"alert ({alert.kind}): {alert.text}"
    make_console(stderr=True).print(text, soft_wrap=True, style="bold red")
