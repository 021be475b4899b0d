"""The thread that answers HTTP."""

import asyncio
import contextlib
import logging
import socket
import threading
from functools import partial

from sidecar import listeners
from sidecar.admin.health import unhealthy_reason
from sidecar.config import Config
from sidecar.handlers import Service
from sidecar.loop import Loop
from sidecar.telemetry import Telemetry

_log = logging.getLogger(__name__)
_STOP_SECONDS = 5.0


class AdminServer:
    """Admin port and, where configured, metrics port, answered by one thread.

    FastAPI is imported on that thread (0.5 s): from ``start`` on the ports
    accept, a little later they answer.
    """

    def __init__(self, config: Config, service: Service, loop: Loop, telemetry: Telemetry) -> None:
        self._config = config
        self._service = service
        self._loop = loop
        self._telemetry = telemetry
        self._thread: threading.Thread | None = None
        self._events: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._admin: list[socket.socket] = []
        self._metrics: list[socket.socket] = []

    @property
    def port(self) -> int:
        """The admin port that was bound; the metrics port is always the configured one."""
        port: int = self._admin[0].getsockname()[1]
        return port

    def start(self) -> None:
        """Bind the ports and start the thread.

        Raises:
            OSError: a port is in use, or an address unknown; the text names it.
        """
        config = self._config
        self._admin = listeners.listen(config.http_host, config.http_port)
        try:
            if config.prometheus_port:
                self._metrics = listeners.listen(config.prometheus_host, config.prometheus_port)
        except OSError:
            listeners.close(self._admin)
            raise
        self._events = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, args=(self._events,), name="admin", daemon=True
        )
        self._thread.start()

    def wait_started(self, timeout: float) -> bool:
        """Whether requests are answered, after waiting for it ``timeout`` seconds at most."""
        return self._started.wait(timeout)

    def stop(self) -> None:
        """Finish the requests being answered, within 5 s, and close the ports."""
        if self._events is None or self._thread is None:
            return
        with contextlib.suppress(RuntimeError):  # closed: the thread has ended by itself
            self._events.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STOP_SECONDS)

    def _run(self, events: asyncio.AbstractEventLoop) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: events) as runner:
                runner.run(self._serve())
        except Exception:
            # The rest goes on serving workers; health checks fail, so somebody will look here.
            _log.exception("the admin port has stopped")
            listeners.close(self._admin + self._metrics)

    async def _serve(self) -> None:
        from sidecar.admin.boundary import Boundary
        from sidecar.admin.health import Health
        from sidecar.admin.metrics import create_metrics_app
        from sidecar.admin.origin import Names
        from sidecar.admin.routes import create_app
        from sidecar.admin.web import serve

        healthy = partial(unhealthy_reason, self._service, self._loop)
        self._telemetry.gauge_source("healthy", lambda: int(healthy() is None))
        self._telemetry.start()
        config, health = self._config, Health(self._service, self._loop)
        app = create_app(config, self._service, self._loop, self._telemetry, health)
        sites = [(Boundary(app, Names(config.http_host)), self._admin)]
        if self._metrics:
            metrics = create_metrics_app(self._telemetry, health)
            sites.append((Boundary(metrics, Names(config.prometheus_host)), self._metrics))
        try:
            await serve(sites, self._stop, self._started.set)
        finally:
            health.close()
