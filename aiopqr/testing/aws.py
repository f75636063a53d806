"""AWS Secrets Manager for tests and examples: moto's server in a separate process on 127.0.0.1, or LocalStack.

Both are reached over HTTP, as AWS is. Pass :attr:`SecretsManager.options` to a source or a store.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import time
import urllib.request
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

from ..sources.aws.client import core_of, default_session
from .container import container_of
from .errors import NotAvailable, ServerError

REGION = "eu-central-1"

# It exits when the pipe from its parent closes, no matter how the parent died.
_SERVE = """
import sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
"""


class SecretsManager(ABC):
    """A service that speaks the protocol of Secrets Manager. Starting and stopping it blocks for some seconds."""

    endpoint_url: str = ""

    @abstractmethod
    def start(self) -> Self:
        """Start it and wait until it answers. Raises :class:`NotAvailable` if that is not possible here."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it and lose all secrets. A second call does nothing."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def options(self) -> dict[str, Any]:
        """The arguments for ``SecretsManagerSource(name, **options)``. The session's AWS credentials are made up."""
        return {"session": _session(), "endpoint_url": self.endpoint_url}

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        """Open a plain client, to do what an operator or AWS itself would do."""
        options = self.options
        async with core_of(options.pop("session")).create_client("secretsmanager", **options) as client:
            yield client

    async def create_secret(self, value: Mapping[str, Any] | str | bytes, name: str | None = None) -> str:
        """Create a secret with this value (a mapping is stored as JSON) and return its name."""
        name = name or f"test/{uuid.uuid4()}"
        kind = "SecretBinary" if isinstance(value, bytes) else "SecretString"
        async with self.client() as client:
            await client.create_secret(Name=name, **{kind: json.dumps(value) if isinstance(value, Mapping) else value})
        return name


@functools.cache  # the session keeps the service models, which are slow to load
def _session() -> Any:
    session = default_session()
    core_of(session).set_credentials("testing", "testing")
    core_of(session).set_config_variable("region", REGION)
    return session


class EmbeddedSecretsManager(SecretsManager):
    """moto's server (``pip install 'moto[server]'``)."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        try:
            import moto.moto_server  # noqa: F401
        except ImportError:
            raise NotAvailable("an embedded Secrets Manager needs moto: pip install 'moto[server]'") from None
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            self.stop()
            raise ServerError("moto's server did not start: try `python -m moto.server` by hand")
        self.endpoint_url = f"http://127.0.0.1:{port}"
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class ContainerSecretsManager(SecretsManager):
    """LocalStack in a container, run by ``testcontainers``. Needs Docker."""

    def __init__(self, image: str = "localstack/localstack:3.8") -> None:
        self.image = image
        self._container: Any = None

    def start(self) -> Self:
        self._container = container_of(self.image, {4566: None}, {"SERVICES": "secretsmanager,sts"})
        try:
            self._container.start()
            self.endpoint_url = f"http://127.0.0.1:{self._container.get_exposed_port(4566)}"
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        if self._container is not None:
            self._container.stop()
            self._container = None

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + 60.0
        while True:
            health = f"{self.endpoint_url}/_localstack/health"
            with contextlib.suppress(OSError), urllib.request.urlopen(health, timeout=2.0):
                return
            if time.monotonic() > deadline:
                raise ServerError(f"{self.image} did not answer within 60 s")
            time.sleep(0.1)
