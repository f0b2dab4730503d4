"""Run programs in forks of a process that has imported torch and the recorder already.

To import them takes seconds. A fork behaves like a new interpreter: it takes signals, and
ends the way the program ends.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple


class Finished(NamedTuple):
    """How a program ended."""

    code: int
    """Exit code, negative for a signal."""
    output: str
    errors: str


class WarmProcess:
    """Start programs, one at a time."""

    def __init__(self, directory: Path, *modules: str) -> None:
        # Programs find `modules` imported, in addition to torch and the recorder.
        self._directory = directory
        self._server = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def start(self, program: str, *, is_ready: bool = False) -> int:
        """Start a program and return its process number; if `is_ready`, wait for its output."""
        for name in ("output", "errors"):
            (self._directory / name).write_bytes(b"")
        request = {"program": program, "directory": str(self._directory)}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        process = int(self._answer())
        output = self._directory / "output"
        for _ in range(6000 if is_ready else 0):
            if output.stat().st_size or (self._directory / "errors").stat().st_size:
                break
            time.sleep(0.01)
        return process

    def has_finished(self) -> bool:
        """Whether the program has ended."""
        assert self._server.stdout is not None
        return bool(select.select([self._server.stdout], [], [], 0)[0])

    def finish(self) -> Finished:
        """Wait until the program ends."""
        code = os.waitstatus_to_exitcode(int(self._answer()))
        output, errors = (
            (self._directory / name).read_text() for name in ("output", "errors")
        )
        return Finished(code, output, errors)

    def run(self, program: str) -> Finished:
        """Run a program to its end."""
        self.start(program)
        return self.finish()

    def close(self) -> None:
        """End the process that programs are forked from."""
        self._server.communicate()

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


def serve() -> str:
    """Fork for every request and report the exit code; return the program in the fork."""
    # A shell lets its background jobs ignore this signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        child = os.fork()
        if child == 0:
            redirect(Path(request["directory"]))
            program: str = request["program"]
            return program
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
    sys.exit()


def redirect(directory: Path) -> None:
    """Empty standard input, and write standard output and standard error to files."""
    files = {0: Path("/dev/null"), 1: directory / "output", 2: directory / "errors"}
    for descriptor, path in files.items():
        file = os.open(path, os.O_RDWR)
        os.dup2(file, descriptor)
        os.close(file)


if __name__ == "__main__":
    import torch

    import trajstore.recording.recorder  # noqa: F401

    for module in sys.argv[1:]:
        import_module(module)
    # Making the first optimizer imports torch's compiler.
    torch.optim.SGD([torch.zeros(1)])
    torch.set_num_threads(1)
    exec(serve(), {"__name__": "__main__"})
