"""Errors of object storage end in short messages that say what to do."""

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.trajstore.handmade import small_spec
from trajstore.cli.main import main
from trajstore.reading.run import open_run
from trajstore.store import fenced, lease
from trajstore.store.patience import StorageError, explanation
from trajstore.store.writer import Writer

obstore = pytest.importorskip("obstore")

URL = "s3://bucket/run.zarr"


@contextmanager
def server(status: int, code: str) -> Iterator[str]:
    """Yield the URL of a server that answers all requests with an error."""
    body = f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for module in (fenced, lease):
        monkeypatch.setattr(module, "OPENING_SECONDS", 0.1)


def write() -> None:
    Writer(URL, small_spec({"a": (3,)})).close()


def read() -> None:
    open_run(URL)


REFUSED = (
    r"refused a request \(403, SignatureDoesNotMatch\): {0}/bucket.*\. Check that the "
    r"credentials \(AWS_ACCESS_KEY_ID .*AWS_REGION and AWS_ENDPOINT_URL belong to this"
)
NO_BUCKET = r"no such bucket: {0}/bucket\. Create it, or check its name, AWS_REGION"
ANSWERS = {
    "refused writer": (write, 403, "SignatureDoesNotMatch", REFUSED),
    "refused reader": (read, 403, "SignatureDoesNotMatch", REFUSED),
    "writer without a bucket": (write, 404, "NoSuchBucket", NO_BUCKET),
}


@pytest.mark.parametrize(
    ("use", "status", "code", "message"), ANSWERS.values(), ids=ANSWERS
)
def test_a_refusal_says_what_to_check(
    use: Callable[[], None],
    status: int,
    code: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
):
    with server(status, code) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StorageError, match=message.format(url)) as caught:
            use()
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("use", [write, read])
def test_missing_credentials_are_named(
    use: Callable[[], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    message = (
        r"^No credentials .* found\. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )
    with server(403, "Forbidden") as url:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", url)
        with pytest.raises(StorageError, match=message):
            use()


def test_commands_print_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["traj-store", "info", URL])
    with server(403, "AccessDenied") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(SystemExit, match="1"):
            main()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("traj-store: Object storage refused a request (403, Acc")


def test_a_missing_store_may_be_in_a_missing_bucket(monkeypatch: pytest.MonkeyPatch):
    with server(404, "NoSuchBucket") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(FileNotFoundError, match="Check the bucket and the path"):
            read()


START = "Generic {0} error: Error performing GET "
UNREACHABLE = (
    "http://127.0.0.1:9/b/x?list in 2s, after 10 retries - HTTP error: error sending "
    "request\n\nDebug source:\nGeneric {"
)
TEXTS = {
    "unreachable": (
        START.format("S3") + UNREACHABLE,
        "Object storage at http://127.0.0.1:9 does not answer. Check AWS_REGION and AWS_",
    ),
    "google": (
        START.format("GCS") + "http://metadata.google.internal/token in 1s - refused",
        "No credentials for object storage were found. Set GOOGLE_APPLICATION_CREDENTIALS",
    ),
    "azure": (
        START.format("MicrosoftAzure") + "http://169.254.169.254/metadata/identity in",
        "No credentials for object storage were found. Set AZURE_STORAGE_ACCOUNT_NAME",
    ),
    "others": (
        "Generic S3 error: the moon is full\n\nDebug source:\nGeneric {",
        "A request to object storage failed: Generic S3 error: the moon is full",
    ),
}


@pytest.mark.parametrize(("text", "start"), TEXTS.values(), ids=TEXTS)
def test_errors_of_every_storage_are_explained(text: str, start: str):
    found = explanation(obstore.exceptions.GenericError(text))
    assert found.startswith(start)
    assert not re.search(r"\n|Debug", found)


def test_other_errors_stay_as_they_are():
    assert not explanation(obstore.exceptions.PreconditionError("changed"))
    assert not explanation(FileNotFoundError("Object at location x not found"))
