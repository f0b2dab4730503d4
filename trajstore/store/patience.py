"""Repeat requests to object storage while the network or the storage fails, and explain errors."""

import asyncio
import logging
import math
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, NamedTuple, TypeVar

T = TypeVar("T")

OUTAGE_SECONDS: Final = 600.0
"""Longest outage of the storage that a recording waits for, unless `OUTAGE` says otherwise."""

OUTAGE: Final = "TRAJSTORE_OUTAGE_SECONDS"
"""Environment variable with another number of seconds; 0 does not wait."""

OPENING_SECONDS: Final = 60.0
"""Longest outage that opening and releasing a store wait for."""

FIRST_PAUSE: Final = (
    0.1  # seconds before the first repetition; each further pause is longer
)
LONGEST_PAUSE: Final = 15.0

# Refusals, except of a request that timed out or came too early, do not pass with time.
REFUSAL: Final = re.compile(r"status code: 4(?!08|25|29)\d\d")

# Machines in a cloud get credentials from such an address; others have none there.
METADATA: Final = re.compile(r"//(169\.254\.|metadata\.)|/latest/(api/token|meta-data)")

TRANSLATED: Final = ("GenericError", "PermissionDeniedError", "UnauthenticatedError")
"""Errors of obstore whose messages hold the structures of its Rust code."""


class Variables(NamedTuple):
    """Environment variables of one kind of object storage."""

    credentials: str
    place: str
    public: str  # variables with which a public bucket is read without credentials


AWS: Final = Variables(
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN if they are temporary",
    "AWS_REGION and AWS_ENDPOINT_URL",
    "AWS_SKIP_SIGNATURE=true",
)
OTHERS: Final = {
    ("GCS", "googleapis"): Variables(
        "GOOGLE_APPLICATION_CREDENTIALS, the path of a file of credentials",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SKIP_SIGNATURE=true",
    ),
    ("Azure", "windows.net"): Variables(
        "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCOUNT_NAME",
        "AZURE_SKIP_SIGNATURE=true",
    ),
}

LOGGER: Final = logging.getLogger("trajstore")


class StorageError(OSError):
    """A request that object storage refused or did not answer."""


def outage_seconds() -> float:
    """Return the longest outage that a recording waits for."""
    text = os.environ.get(OUTAGE, "")
    try:
        seconds = float(text) if text else OUTAGE_SECONDS
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ValueError(
            f"The environment variable {OUTAGE} must be a number of seconds, 0 or more, got "
            f"{text!r}."
        )
    return seconds


async def patiently(request: Callable[[], Awaitable[T]], *, seconds: float) -> T:
    """Make a request; after errors of the network, repeat it for `seconds` seconds."""
    give_up, pause, said = None, FIRST_PAUSE, ""
    while True:
        try:
            return await request()
        except Exception as error:
            now = time.monotonic()
            give_up = give_up or now + seconds
            if not is_passing(error) or now + pause > give_up:
                if text := explanation(error):
                    raise StorageError(text) from None
                raise
            text = explanation(error) or _first_line(error)
            if text == said:
                LOGGER.warning("Still waiting, %.0f seconds more.", give_up - now)
            else:
                LOGGER.warning(
                    "The storage does not answer (%s). Repeating the request for %.0f more "
                    "seconds.",
                    text,
                    give_up - now,
                )
            said = text
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


@contextmanager
def explained_errors() -> Iterator[None]:
    """Say what a user can do about errors of requests in the block."""
    try:
        yield
    except Exception as error:
        if text := explanation(error):
            raise StorageError(text) from None
        raise


def explanation(error: Exception) -> str:
    """Say what a user can do about an error of a request; "" if its own message says it."""
    kind = type(error)
    if not kind.__module__.startswith("obstore") or kind.__name__ not in TRANSLATED:
        return ""
    text = _first_line(error)
    found = next(
        (v for words, v in OTHERS.items() if any(w in text for w in words)), AWS
    )
    url = match[1] if (match := re.search(r"(https?://[^\s?]+)", text)) else ""
    if METADATA.search(url):
        return (
            f"No credentials for object storage were found. Set {found.credentials}; with "
            f"{found.public}, a public bucket is read without credentials."
        )
    code = f", {match[1]}" if (match := re.search(r"<Code>(\w+)</Code>", text)) else ""
    if "NoSuchBucket" in code or "ContainerNotFound" in code:
        return f"There is no such bucket: {url}. Create it, or check its name, {found.place}."
    if match := re.search(r"status code: (30\d|40[013])", text):
        return (
            f"Object storage refused a request ({match[1]}{code}): {url}. Check that the "
            f"credentials ({found.credentials}), {found.place} belong to this bucket."
        )
    if "error sending request" in text:
        host = "/".join(url.split("/")[:3])
        return f"Object storage at {host} does not answer. Check {found.place}, and the network."
    return f"A request to object storage failed: {text}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), repr(error))
