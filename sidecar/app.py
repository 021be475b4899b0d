"""The server's life, in reading order: build, start, serve, stop."""

import gc
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from sidecar.addresses import in_url
from sidecar.admin import AdminServer
from sidecar.cache.arena import Arena, parts_of
from sidecar.cache.journal import Journal
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases
from sidecar.cache.policies import POLICIES
from sidecar.cache.quotas import Quotas
from sidecar.cache.records import Head, head_of
from sidecar.cache.recovery import Legacy, inherited, open_journal, restore
from sidecar.cache.segment import SHM_DIR, Segment, SegmentError, remove_orphans
from sidecar.config import Config
from sidecar.engines.attachments import Attachments, watch_shared_memory
from sidecar.engines.copier import CopyPool
from sidecar.engines.cuda.gpus import Gpus
from sidecar.engines.cuda.numa import gpu_nodes, place
from sidecar.engines.registry import Registry
from sidecar.handlers import Service
from sidecar.handlers.core import Core
from sidecar.handlers.digests import Digests
from sidecar.handlers.gauges import observe
from sidecar.handlers.gpu_transfers import record_transfer
from sidecar.handlers.inheritance import Inheritance
from sidecar.handlers.kv_events.chunks import Chunks
from sidecar.handlers.liveness import TICK_SECONDS
from sidecar.handlers.lookup_log import LookupLog
from sidecar.handlers.refusals import Refusals
from sidecar.handlers.samples import SAMPLE_SECONDS
from sidecar.limits import check_threads, go_first, raise_descriptor_limit
from sidecar.loop import Loop
from sidecar.telemetry import Telemetry
from sidecar.tiers.base import AdapterUnusable
from sidecar.tiers.record import HEADER_BYTES
from sidecar.tiers.tiers import ServerHooks, TierOptions, Tiers
from sidecar.wire.endpoint import Endpoint
from sidecar.wire.generations import generation_of
from sidecar.wire.peers import Peers
from sidecar.wire.tokens import TokenLists

if TYPE_CHECKING:
    from sidecar.gds import Gds
    from sidecar.wire.publisher import Publisher

log = logging.getLogger("sidecar")

# All that would end the process and are no sign of a bug: what is caught cleans up. (SIGHUP apart.)
_STOP_SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR),
    *(signal.SIGXCPU, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)),
)
# Populate, admin, and those that answer HTTP.
_OTHER_THREADS = 10
_DRAIN_SECONDS = 5.0
# What is queued for L2 gets more time: it is lost otherwise.
_L2_DRAIN_SECONDS = 15.0
# Workers' transfers follow each other with pauses as short as this while one is busy.
_PAUSE_SECONDS = 0.02
# Half of the clients' default heartbeat. A worker whose ping is not answered in time gives up
# what it has in flight and uses its blocks for something else, while we still copy them.
_STALL_SECONDS = 5.0
_UNANSWERED_SECONDS = 10.0  # the heartbeat itself: by then it has happened, whatever the reason
_DRAIN_POLL_SECONDS = 0.02
_LAST_REQUESTS_SECONDS = 0.1
_LET_GO_SECONDS = 3.0
_SWEEP_SECONDS = 60.0
_SWITCH_INTERVAL_SECONDS = 0.0005


class App:
    """All parts of one server. `run` returns when a signal has stopped it."""

    def __init__(self, config: Config) -> None:
        """Take what the server needs: memory and ports. Raises SegmentError or OSError."""
        self._config = config
        self._loop = Loop()
        self._stopping = False
        self._abandon: Callable[[], None] = lambda: None
        self._taken = ExitStack()  # what would outlive the process
        # Before anything is taken that a signal's default action would leave behind.
        for number in _STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        # A terminal that closes; nohup means that it may.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_signal)
        self._telemetry = Telemetry(
            enabled=not config.disable_metrics,
            otlp_endpoint=config.otlp_endpoint,
            instance_id=config.instance_id,
            trace_ratio=config.trace_sample_ratio,
        )
        check_threads(config.max_workers + _OTHER_THREADS)
        # An earlier server may have left a million objects; the collector would walk their records.
        gc.disable()
        keep = config.l1_keep_seconds
        name = config.shm_name or secrets.token_hex(4)
        self._watch = watch_shared_memory()
        self._segment = Segment(name, config.l1_size_bytes, keep)
        self._abandon = self._segment.leave if keep else self._segment.remove
        self._taken.callback(self._abandon)
        try:
            self._nodes = gpu_nodes()
            head = self._build_head() if keep else None
            legacy = inherited(self._segment, head) if head is not None else None
            self._arena = Arena(self._segment, config.l1_transparent_hugepages, len(self._nodes))
            self._core = self._build_core()
            observe(self._core)
            self._service = Service(self._core, self._loop.post, self._loop.call_later)
            self._endpoint = self._build_endpoint()
            self._taken.callback(self._endpoint.close)
            self._listen()
            self._admin = AdminServer(config, self._service, self._loop, self._telemetry)
            self._admin.start()
            publisher = self._bind_publisher()
            # All that can fail has not: what was kept is for a server that starts.
            self._core.tiers.epochs.learn()
            if head is not None:
                self._inherit(head, legacy)
            if publisher is not None:
                self._publish_events(publisher)
        except BaseException:
            self._taken.close()
            raise

    def run(self) -> None:
        """Serve until a signal."""
        try:
            self._start()
            go_first()
            self._loop.run()
            self._close()
        finally:
            self._taken.close()

    def _start(self) -> None:
        # The wire thread must get the GIL back quickly from the copy and HTTP threads.
        sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
        place(self._arena, self._nodes)
        self._arena.start_populating(
            lambda offset, size: self._loop.post(partial(self._service.grow, offset, size))
        )
        self._loop.add_reader(self._endpoint.fileno(), self._endpoint.on_readable)
        self._loop.every(TICK_SECONDS, self._service.liveness(self._endpoint.is_connected).tick)
        self._loop.every(TICK_SECONDS, self._endpoint.tick)
        self._loop.every(TICK_SECONDS, self._service.tick)
        self._loop.every(SAMPLE_SECONDS, self._service.samples.sample)
        self._loop.watch_for_stalls(_STALL_SECONDS, _UNANSWERED_SECONDS, self._service.on_stall)
        self._loop.count_failures(partial(self._core.refusals.add, "callback", "internal_error"))
        self._core.tiers.start()
        threading.Thread(target=_sweep, name="sweep", daemon=True).start()
        # What there is now stays; the collector, which stops everybody, need not look at it again.
        gc.collect()
        gc.freeze()
        gc.enable()
        self._announce()

    def _build_head(self) -> Head:
        size = self._segment.size
        parts = [part.start for part in parts_of(size, len(self._nodes))]
        return head_of(size, self._headroom, parts, self._config.chunk_size)

    @property
    def _headroom(self) -> int:
        return HEADER_BYTES if self._config.l2_adapter else 0

    def _inherit(self, head: Head, legacy: Legacy | None) -> None:
        """Write down for a successor what is in the L1, and begin with what is there already."""
        if legacy is None:
            journal = self._core.l1.journal = open_journal(self._segment, head, None)
        else:
            journal = self._take_over(head, legacy)
        self._core.tiers.epochs.tick()
        Digests(self._core, journal)

    def _take_over(self, head: Head, legacy: Legacy) -> Journal:
        l1, own_name_told = self._core.l1, legacy.shared
        deadline = time.monotonic() + _LET_GO_SECONDS
        while own_name_told and not self._segment.is_alone() and time.monotonic() < deadline:
            time.sleep(_DRAIN_POLL_SECONDS)  # processes of the earlier server's GPUs
        doubt = self._core.tiers.epochs.doubt(legacy.epochs)
        if doubt:
            log.warning("the L1 starts empty, the earlier one cannot be used: %s", doubt)
            legacy = legacy.without_objects()
        journal = open_journal(self._segment, head, legacy)
        self._arena.resident = {piece.start for piece in legacy.pieces}
        left = restore(l1, journal, legacy, self._segment.is_alone())
        if doubt:
            l1.clear(force=False)  # the index has the objects still
        self._loop.every(TICK_SECONDS, Inheritance(self._core, left, own_name_told).tick)
        log.info(
            "the L1 begins with %d objects of the earlier server, %d of them to be verified",
            l1.objects + len(left.unproven), len(left.unproven),
        )  # fmt: skip
        return journal

    def _build_core(self) -> Core:
        config = self._config
        l1 = L1(
            self._arena.size,
            POLICIES[config.eviction_policy](Quotas(self._arena.size)),
            headroom=self._headroom,
            starts=[part.start for part in self._arena.parts],
            protect_ratio=config.l1_protect_ratio,
        )
        leases = Leases()
        copies = CopyPool(config.max_workers, self._loop.post)
        tiers = self._build_tiers(l1, leases, copies)
        gds = self._build_gds(tiers)
        return Core(
            config=config,
            arena=self._arena,
            attachments=Attachments(self._segment, self._watch),
            l1=l1,
            leases=leases,
            registry=Registry(),
            copies=copies,
            gpus=Gpus(
                self._arena,
                self._nodes,
                copies,
                self._loop.post,
                partial(record_transfer, self._telemetry),
                config.gpu_batched_copies,
                gds.gpu_files if gds is not None else None,
            ),
            telemetry=self._telemetry,
            tokens=TokenLists(config.max_tokens, config.chunk_size),
            refusals=Refusals(self._telemetry),
            tiers=tiers,
            lookup_log=self._lookup_log(),
            flows=self._loop.flows,
            chunks=Chunks(config.chunk_size),
            past_l1=gds,
        )

    def _build_gds(self, tiers: Tiers) -> "Gds | None":
        """For GPUs that move files themselves. A server without them does not even import it."""
        if not any(backend.settings.gpu_mover for backend in tiers.backends):
            return None
        from sidecar.gds import Gds

        return Gds(tiers, self._telemetry, self._loop.flows)

    def _build_tiers(self, l1: L1, leases: Leases, copies: CopyPool) -> Tiers:
        config = self._config
        policy = TierOptions(
            skip_l1=config.l2_store_policy == "skip_l1",
            reused=config.l2_store_policy == "reused",
            retain=config.l2_prefetch_policy == "retain",
            max_in_flight=config.l2_prefetch_max_in_flight,
            timeout_seconds=config.l2_prefetch_timeout_seconds,
            queue_ratio=config.l2_store_queue_ratio,
        )
        around = ServerHooks(
            post=self._loop.post,
            later=self._loop.call_later,
            flows=self._loop.flows,
            busy=lambda: copies.idle_seconds() < _PAUSE_SECONDS,
            busy_share=copies.busy_share,
        )
        settings = [spec.settings for spec in config.l2_adapter]
        return Tiers(settings, policy, l1, self._arena.bytes, leases, self._telemetry, around)

    def _lookup_log(self) -> LookupLog | None:
        path = self._config.record_lookups
        return LookupLog(Path(path), self._config.chunk_size) if path else None

    def _listen(self) -> None:
        """On the port for all clients, and on those for clients of one release."""
        config = self._config
        ports = {config.port: config.client_generation, **dict(config.client_ports)}
        for port, release in ports.items():
            only = None if release == "auto" else generation_of(release)
            self._endpoint.bind(wire_url(config, port), config.ipc_mode, only)

    def _bind_publisher(self) -> "Publisher | None":
        """Of KV events, on a socket of libzmq. A server without one does not even load it."""
        config = self._config
        if not config.kv_events_endpoint:
            return None
        from sidecar.wire.publisher import Publisher

        replayed = self._telemetry.kv_events_replayed.add
        publisher = Publisher(config.kv_events_endpoint, config.kv_events_replay_endpoint, replayed)
        self._taken.callback(publisher.close)
        return publisher

    def _publish_events(self, publisher: "Publisher") -> None:
        from sidecar.handlers.kv_events.publication import Publication

        pod = self._config.kv_events_pod
        Publication(self._core, self._service.history, publisher, pod)

    def _build_endpoint(self) -> Endpoint:
        core, telemetry = self._core, self._telemetry

        def on_answered(operation: str, seconds: float) -> None:
            telemetry.request_latency.record(seconds, operation)

        return Endpoint(
            Peers(),
            self._service.handlers(),
            self._config.max_message_mb << 20,
            core.refusals.add,
            on_answered,
            self._service.withhold,
            self._loop.post,
            self._loop.flows.start,
        )

    def _announce(self) -> None:
        config = self._config
        log.info(
            "kv-sidecar ready: %s, http://%s:%d, L1 %.2f GiB in %s",
            wire_url(config),
            in_url(config.http_host),
            self._admin.port,
            config.l1_size_gb,
            self._segment.name,
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            self._abandon()
            os._exit(128 + number)
        self._stopping = True
        self._loop.post(self._begin_stop)

    def _begin_stop(self) -> None:
        """Refuse what is new, give what is under way a moment, then cut it off."""
        log.info("kv-sidecar stops")
        self._service.close()
        began = time.monotonic()

        def drain() -> None:
            copies, tiers = self._core.copies, self._core.tiers
            elapsed = time.monotonic() - began
            if elapsed > _DRAIN_SECONDS:
                copies.cancel_all()
            copied = not copies.depth or elapsed > 2 * _DRAIN_SECONDS
            if copied and (not tiers.draining or elapsed > _L2_DRAIN_SECONDS):
                self._loop.stop()
                return
            self._loop.call_later(_DRAIN_POLL_SECONDS, drain)

        # Requests that are on their way meanwhile still get their "no".
        self._loop.call_later(_LAST_REQUESTS_SECONDS, drain)

    def _close(self) -> None:
        self._endpoint.close()
        self._admin.stop()
        self._arena.stop_populating()
        self._core.copies.stop(_DRAIN_SECONDS)
        self._core.gpus.close()
        self._core.tiers.close()
        self._core.attachments.close()
        if self._core.lookup_log is not None:
            self._core.lookup_log.close()
        if self._config.l1_keep_seconds:
            self._core.l1.leave()
        self._abandon()
        self._telemetry.close()
        if self._core.tiers.backends:
            # Not by way of Python's own end. A thread that is stuck in a backend may still move
            # bytes of the arena, which would be unmapped; and backends' libraries take their
            # time there, Mooncake's 14 s when its master is gone.
            logging.shutdown()
            os._exit(0)


def _sweep() -> None:
    """What other servers have left goes when its time has come."""
    while True:
        time.sleep(_SWEEP_SECONDS)
        with suppress(OSError):  # no free descriptor now
            for name in remove_orphans().removed:
                log.warning("removed %s, which a dead server left behind", name)


def wire_url(config: Config, port: int | None = None) -> str:
    """Where the endpoint listens; a Unix socket's path ends in ":port", as clients build it."""
    host = config.host if config.host.startswith("ipc://") else f"tcp://{in_url(config.host)}"
    return f"{host}:{port or config.port}"


def serve(config: Config) -> int:
    """Run the server in the foreground; returns the process's exit code."""
    logging.basicConfig(
        level=config.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    raise_descriptor_limit()
    removed, _, foreign = remove_orphans(config.shm_name if config.l1_keep_seconds else "")
    for name in removed:
        log.warning("removed %s, which a dead server left behind", name)
    if foreign:
        log.info("%d files in %s belong to others, such as %s", len(foreign), SHM_DIR, foreign[0])
    try:
        app = App(config)
    except (SegmentError, AdapterUnusable, OSError) as error:
        print(f"kv-sidecar: {error}", file=sys.stderr)
        return 1
    app.run()
    return 0
