"""Repeat requests to object storage while the network or the storage fails."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, Final, TypeVar

T = TypeVar("T")

OUTAGE_SECONDS: Final = 600.0
"""Longest outage of the storage that a recording waits for."""

OPENING_SECONDS: Final = 60.0
"""Longest outage that opening and releasing a store wait for."""

FIRST_PAUSE: Final = (
    0.1  # seconds before the first repetition; each further pause is longer
)
LONGEST_PAUSE: Final = 15.0

# Refusals, except of a request that timed out or came too early, do not pass with time.
REFUSAL: Final = re.compile(r"status code: 4(?!08|25|29)\d\d")

LOGGER: Final = logging.getLogger("trajstore")


async def patiently(request: Callable[[], Awaitable[T]], *, seconds: float) -> T:
    """Make a request; after errors of the network, repeat it for `seconds` seconds."""
    give_up, pause = None, FIRST_PAUSE
    while True:
        try:
            return await request()
        except Exception as error:
            now = time.monotonic()
            give_up = give_up or now + seconds
            if not is_passing(error) or now + pause > give_up:
                raise
            LOGGER.warning(
                "The storage does not answer (%s). Repeating the request for %.0f more "
                "seconds.",
                _first_line(error),
                give_up - now,
            )
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def is_passing(error: Exception) -> bool:
    """Whether an error of a request may be gone when the request is repeated."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    kinds: tuple[Any, ...] = (ConnectionError, TimeoutError)
    if type(error).__module__.startswith("obstore"):
        kinds += (import_module("obstore.exceptions").GenericError,)
    return isinstance(error, kinds) and not REFUSAL.search(str(error))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), repr(error))
