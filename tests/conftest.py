"""Object storage that tests share."""

import logging
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """Yield the URL of a bucket in an emulation of S3."""
    pytest.importorskip("obstore")
    server = pytest.importorskip("moto.server")
    backends = pytest.importorskip("moto.backends")
    modules = tuple(backends.list_of_moto_modules())
    emulation = server.ThreadedMotoServer(port=0, verbose=False)
    emulation.start()
    host, port = emulation.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        # The emulation would list its folder in every request.
        patch.setattr(backends, "list_of_moto_modules", lambda: modules)
        patch.setattr(logging.getLogger("werkzeug"), "disabled", True)
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        urlopen(Request(f"{url}/runs", method="PUT")).close()
        yield "s3://runs"
    emulation.stop()
