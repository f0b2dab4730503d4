"""Identify the process that writes a store, and tell whether it has ended.

The document `WRITER` of a store describes its writer. A process of the same machine can see
whether the writer still runs; other machines cannot.
"""

import json
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import google_crc32c
from zarr.abc.store import RangeByteRequest, Store
from zarr.buffer import default_buffer_prototype
from zarr.storage import ObjectStore

from trajstore.store.patience import explained_errors

CHECK: Final = "check"
"""Key of the crc32c of the other contents."""

PROTOTYPE: Final = default_buffer_prototype()

WRITER: Final = ".writer"
"""Document that names the writer of a store."""

MAX_WRITER_BYTES: Final = 1 << 16
"""Largest permitted size of the document."""

_TOKENS: Final = set[str]()  # tokens of the stores that this process is writing


class StoreLockedError(RuntimeError):
    """Another process writes the store or has taken it over."""


def new_holder() -> dict[str, Any]:
    """Describe this process as the writer of one store, with a token that nobody else has."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "token": uuid4().hex,
        "machine": _this_machine(),
        "started": _start_time(os.getpid()),
    }


def hold(holder: Mapping[str, Any]) -> None:
    """Note that this process is writing a store."""
    _TOKENS.add(holder["token"])


def let_go(holder: Mapping[str, Any]) -> None:
    """Note that this process no longer writes a store."""
    _TOKENS.discard(holder["token"])


def is_running(holder: Mapping[str, Any]) -> bool | None:
    """Whether a writer still runs; None if that cannot be seen from this machine."""
    machine, pid = _this_machine(), holder.get("pid")
    if machine is None or holder.get("machine") != machine or type(pid) is not int:
        return None
    if pid == os.getpid() and holder.get("token") not in _TOKENS:
        return False
    # The system may have given the number to another process.
    started = _start_time(pid)
    return started is not None and started == holder.get("started")


def describe(holder: Mapping[str, Any]) -> str:
    """Return words that name a writer."""
    who = ", ".join(f"{key} {holder[key]}" for key in ("host", "pid") if key in holder)
    since = f" since {holder['since']}" if "since" in holder else ""
    return f"{who or 'another process'}{since}"


async def read_holder(store: Store) -> dict[str, Any]:
    """Return the document that names the writer, empty if missing or damaged."""
    if isinstance(store, ObjectStore):
        # An empty object has no valid range.
        with explained_errors():
            try:
                response = await store.store.get_async(WRITER)
            except FileNotFoundError:
                return {}
            if response.meta["size"] > MAX_WRITER_BYTES:
                return {}
            return parse_holder(bytes(await response.bytes_async()))
    part = RangeByteRequest(0, MAX_WRITER_BYTES)
    document = await store.get(WRITER, PROTOTYPE, part)
    return parse_holder(document.to_bytes()) if document is not None else {}


def holder_document(holder: Mapping[str, Any]) -> bytes:
    """Return the document that names a writer, with a check of its contents."""
    return json.dumps(dict(holder) | {CHECK: _check(holder)}).encode()


def parse_holder(document: bytes) -> dict[str, Any]:
    """Return the contents of a document that names a writer, empty if it is damaged."""
    return _parsed(document) or {}


def is_damaged(document: bytes) -> bool:
    """Whether a document that names a writer is not as it was written."""
    return _parsed(document) is None


def _parsed(document: bytes) -> dict[str, Any] | None:
    try:
        holder = json.loads(document)
    except (ValueError, RecursionError):
        return None
    if not isinstance(holder, dict):
        return None
    # Writers of earlier versions wrote no check.
    check = holder.pop(CHECK, None)
    return holder if check is None or check == _check(holder) else None


def _check(holder: Mapping[str, Any]) -> int:
    return int(google_crc32c.value(json.dumps(dict(holder), sort_keys=True).encode()))


@lru_cache(maxsize=1)
def _this_machine() -> str | None:
    """Identify the running kernel and the numbering of its processes; None if unknown."""
    # Host names are not unique, and containers number their processes separately.
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        numbering = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return None
    return sha256(f"{boot.strip()} {numbering}".encode()).hexdigest()[:32]


def _start_time(pid: int) -> int | None:
    """Return the time at which a process started, in ticks; None if it does not run."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may contain anything; state and start time are fields 3 and 22.
    fields = text.rpartition(")")[2].split()
    return None if len(fields) < 20 or fields[0] in {"Z", "X"} else int(fields[19])
