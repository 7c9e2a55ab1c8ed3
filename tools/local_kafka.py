"""A real Apache Kafka on this machine with nothing installed but Python packages.

    python -m tools.local_kafka [--brokers 1|3] [--port 9092] [--data DIR] [-- COMMAND ...]

From Python it is a context manager:

    with LocalKafka(brokers=3) as kafka:
        connect(kafka.bootstrap_servers)
        kafka.kill(0)
        kafka.start(0)
"""

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

from tools.kafka_distribution import CLUSTER_ID, LocalKafkaError, distribution
from tools.ports import free_ports, nodes_known_to, reachable, why_taken
from tools.starters import end_with_starters

__all__ = ["LocalKafka", "LocalKafkaError", "main", "reachable"]

READY_WITHIN = 90.0  # seconds; one broker takes 2 to 4, three take 4 to 8
BY_RACK = "org.apache.kafka.common.replica.RackAwareReplicaSelector"
STOPPED_WITHIN = 10.0  # seconds, before what does not stop is killed

# Runs in a process and session of its own and reads the brokers' process ids, one list a line. Its input ends when
# the process that started it ends, however that happens: then it kills the brokers listed last and removes the folder.
_WATCHDOG = """
import os, shutil, signal, sys, time
pids = []
for line in sys.stdin:
    pids = line.split()
for pid in pids:
    try:
        os.kill(int(pid), getattr(signal, "SIGKILL", signal.SIGTERM))
    except OSError:
        pass
deadline = time.monotonic() + 10
while sys.argv[1:] and os.path.exists(sys.argv[1]) and time.monotonic() < deadline:
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    time.sleep(0.02)
"""


class LocalKafka:
    """A cluster of Kafka brokers, each also a controller, listening on 127.0.0.1 only.

    `brokers` is 1 (the default) or 3; with 3, topics have by default three replicas, two of which must be in sync, and
    each broker has a rack of its own: `rack-0`, `rack-1`, `rack-2`.
    `port` is the first broker's, the others take the next ones; by default all are free ones. `data` is the folder
    that keeps the log from one start to the next; by default a temporary one. Topics are not created by being used.
    `settings` are more of Kafka's own, `listeners` among them being more of those; `java` are more options of Java.

    Entering waits until the cluster is ready and raises LocalKafkaError when it cannot be. Leaving ends every process
    and removes every temporary file, and so does the end of this process, even by SIGKILL. Brokers are named by their
    node id: 0, 1, 2.
    """

    def __init__(
        self,
        brokers: int = 1,
        port: int | None = None,
        data: Path | None = None,
        settings: Mapping[str, str] | None = None,
        java: Sequence[str] = (),
    ) -> None:
        self._count = brokers
        self._port = port
        self._data = data
        self._settings = settings or {}
        self._java = java
        self._brokers: list[_Broker] = []
        self._watchdog: subprocess.Popen[str] | None = None

    @property
    def bootstrap_servers(self) -> list[str]:
        """The brokers' addresses, `127.0.0.1:port`, in the order of their node ids."""
        return [broker.address for broker in self._brokers]

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def start(self, *node_ids: int) -> None:
        """Start those of these brokers that do not run, on their ports and data, and wait until all are ready.

        Name together what must be up together: one broker alone is never ready while the other two of three are dead.
        Raises LocalKafkaError when one ends or is not ready within READY_WITHIN seconds.
        """
        # A signal handler only ever interrupts the main thread: so no process is started and then not known.
        with ThreadPoolExecutor(1) as uninterrupted:
            uninterrupted.submit(self._spawn, node_ids).result()
        self._wait_until_ready(node_ids)

    def kill(self, node_id: int) -> None:
        """End this broker at once (SIGKILL); its data stays."""
        self._brokers[node_id].end(at_once=True)
        self._tell_watchdog()

    def leave(self, node_id: int) -> None:
        """End this broker as an operator does (SIGTERM), and wait until it has ended; its data stays."""
        broker = self._brokers[node_id]
        broker.send_signal(signal.SIGTERM)
        if broker.process:
            broker.process.wait(READY_WITHIN)

    def suspend(self, node_id: int) -> None:
        """Freeze this broker (SIGSTOP; not on Windows): its connections stay open and nothing answers."""
        broker = self._brokers[node_id]
        broker.send_signal(signal.SIGSTOP)
        if broker.process:
            os.waitid(os.P_PID, broker.process.pid, os.WSTOPPED)  # its last thread stops a moment later

    def resume(self, node_id: int) -> None:
        """Let a suspended broker go on (SIGCONT)."""
        self._brokers[node_id].send_signal(signal.SIGCONT)

    def wait(self) -> NoReturn:
        """Block until interrupted; raise LocalKafkaError when a broker ends by itself."""
        while True:
            _refuse_dead(self._brokers)
            time.sleep(0.2)

    def _open(self) -> None:
        ports = free_ports(self._count) if self._port is None else range(self._port, self._port + self._count)
        for port in ports:
            _refuse_taken(port)
        kafka = distribution()
        java = (kafka.java[0], *self._java, *kafka.java[1:])
        self._brokers = []
        with ThreadPoolExecutor(1) as uninterrupted:
            folder = uninterrupted.submit(self._prepare_folder).result()
        for node_id, (port, controller_port) in enumerate(zip(ports, free_ports(self._count, ports), strict=True)):
            self._brokers.append(_Broker(node_id, port, controller_port, folder, java))
        for broker in self._brokers:
            broker.configure(self._brokers, kafka.formatted, self._settings)
        self.start(*range(self._count))

    def _prepare_folder(self) -> Path:
        """Make the data folder, and the watchdog that removes it when it is a temporary one."""
        if self._data is None:
            folder = Path(tempfile.mkdtemp(prefix="local-kafka-"))
            self._watchdog = _start_watchdog(str(folder))
            return folder
        kept = len(list(self._data.glob("broker-*/meta.properties")))
        if kept not in (0, self._count):
            raise LocalKafkaError(f"{self._data} holds the data of {kept} broker(s), expected {self._count}")
        self._data.mkdir(parents=True, exist_ok=True)
        self._watchdog = _start_watchdog()
        return self._data.resolve()

    def _spawn(self, node_ids: Iterable[int]) -> None:
        for node_id in node_ids:
            self._brokers[node_id].spawn()
            self._tell_watchdog()

    def _tell_watchdog(self) -> None:
        """List the brokers that run now, so that it never kills a stranger who got the process id of a dead one."""
        pids = [broker.process.pid for broker in self._brokers if broker.process]
        if self._watchdog and self._watchdog.stdin:
            with suppress(OSError):  # someone killed it: nothing depends on it while this process lives
                print(*pids, file=self._watchdog.stdin, flush=True)

    def _wait_until_ready(self, node_ids: Sequence[int]) -> None:
        """Wait until each of these brokers answers that all of them are alive."""
        brokers = [self._brokers[node_id] for node_id in node_ids]
        deadline = time.monotonic() + READY_WITHIN
        while not all(nodes_known_to(broker.address).issuperset(node_ids) for broker in brokers):
            _refuse_dead(brokers)
            if time.monotonic() > deadline:
                raise LocalKafkaError(f"Kafka is not ready after {READY_WITHIN:.0f} s. {brokers[0].last_words()}")
            time.sleep(0.05)

    def _close(self) -> None:
        kept = self._data is not None
        if kept:  # all at once, so that they take their leave together
            for broker in self._brokers:
                broker.send_signal(signal.SIGTERM)
        for broker in self._brokers:
            broker.end(at_once=not kept)
        self._tell_watchdog()
        if self._watchdog and self._watchdog.stdin:
            with suppress(OSError):
                self._watchdog.stdin.close()
            self._watchdog.wait()


def learn_to_start() -> None:
    """Start and end a broker once, so that each later start takes half of the time and work: 6 s, 65 MB of cache."""
    learnt = distribution().learnt
    if learnt.exists():
        return
    with tempfile.TemporaryDirectory(prefix="learn-", dir=learnt.parent) as scratch:
        made = Path(scratch, learnt.name)
        with LocalKafka(java=[f"-XX:AOTCacheOutput={made}"]) as kafka:
            kafka.leave(0)
        if made.exists():
            made.replace(learnt)


@dataclass
class _Broker:
    """One broker-controller: its files in the cluster's folder, and its process while it runs."""

    node_id: int
    port: int
    controller_port: int
    folder: Path
    java: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        # Not `localhost`: that may mean ::1 to a client, and then nothing would listen there.
        return f"127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        return f"broker-{self.node_id}"

    def configure(self, cluster: Sequence["_Broker"], formatted: Path, more: Mapping[str, str]) -> None:
        """Write its settings, and give it a formatted storage unless an earlier start did."""
        self.folder.joinpath(f"{self.name}.properties").write_text(_settings(self, cluster, more))
        storage = self.folder / self.name
        if not (storage / "meta.properties").exists():
            shutil.copytree(formatted, storage, dirs_exist_ok=True)
            # Kafka adds a directory.id, which no two brokers may share.
            identity = f"version=1\ncluster.id={CLUSTER_ID}\nnode.id={self.node_id}\n"
            (storage / "meta.properties").write_text(identity)

    def spawn(self) -> None:
        """Start its process unless it runs."""
        if self.process and self.process.poll() is None:
            return
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                # Codecs unpack their native libraries into Java's temporary folder: it must go when this one goes.
                [*self.java, f"-Djava.io.tmpdir={self.folder}", "kafka.Kafka", f"{self.name}.properties"],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for the tool, which then ends its brokers
            )

    def send_signal(self, number: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(number)

    def end(self, *, at_once: bool) -> None:
        if self.process:
            _end(self.process, at_once=at_once)
            self.process = None

    def last_words(self) -> str:
        """Return the last lines of its log, without those of stack traces."""
        log = (self.folder / f"{self.name}.log").read_text(errors="replace")
        lines = [line for line in log.splitlines() if line.strip() and not line.startswith("\tat ")]
        return "\n  ".join(["The end of its log:", *lines[-10:]])


def _settings(broker: _Broker, cluster: Sequence[_Broker], more: Mapping[str, str]) -> str:
    copies = len(cluster)
    in_sync = min(2, copies)
    voters = ",".join(f"{each.node_id}@127.0.0.1:{each.controller_port}" for each in cluster)
    listeners = [f"PLAINTEXT://{broker.address}", f"CONTROLLER://127.0.0.1:{broker.controller_port}"]
    if "listeners" in more:
        listeners.append(more["listeners"])
    lines = [
        "process.roles=broker,controller",
        f"node.id={broker.node_id}",
        f"controller.quorum.voters={voters}",
        "controller.listener.names=CONTROLLER",
        f"listeners={','.join(listeners)}",
        f"log.dirs={broker.name}",
        "auto.create.topics.enable=false",
        "group.initial.rebalance.delay.ms=0",
        f"default.replication.factor={copies}",
        f"min.insync.replicas={in_sync}",
        f"offsets.topic.replication.factor={copies}",
        f"transaction.state.log.replication.factor={copies}",
        f"transaction.state.log.min.isr={in_sync}",
        f"share.coordinator.state.topic.replication.factor={copies}",
        f"share.coordinator.state.topic.min.isr={in_sync}",
        # 50 each by default: files and start-up time for nothing on a laptop.
        "offsets.topic.num.partitions=6",
        "transaction.state.log.num.partitions=6",
        # 128 MiB by default, half of the heap.
        "log.cleaner.dedupe.buffer.size=4194304",
        # 15 s by default: who tries out compaction should see it soon.
        "log.cleaner.backoff.ms=1000",
    ]
    if copies > 1:  # others notice its death in 3 s; a lone broker that stalls for 3 s should not lose its lease
        lines += ["broker.session.timeout.ms=3000", "broker.heartbeat.interval.ms=500"]
        lines += [f"broker.rack=rack-{broker.node_id}", f"replica.selector.class={BY_RACK}"]
    lines += [f"{name}={value}" for name, value in more.items() if name != "listeners"]
    return "\n".join(lines) + "\n"


def _refuse_taken(port: int) -> None:
    if reason := why_taken(port):
        raise LocalKafkaError(
            f"port {port}: {reason}. If a Kafka listens there, just use it: KAFKA_BOOTSTRAP_SERVERS=localhost:{port}; "
            "if not, choose another port with --port"
        )


def _refuse_dead(brokers: Iterable[_Broker]) -> None:
    for broker in brokers:
        if broker.process and (status := broker.process.poll()) is not None:
            raise LocalKafkaError(f"Kafka's broker {broker.node_id} ended, status {status}. {broker.last_words()}")


def _start_watchdog(*temporary: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCHDOG, *temporary],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes], *, at_once: bool = False) -> None:
    """End a process: by SIGKILL at once, or by SIGTERM and STOPPED_WITHIN seconds later by SIGKILL."""
    if not at_once:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOPPED_WITHIN)
    process.kill()
    process.wait()


ENDING_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""SIGHUP comes when the terminal is closed."""


class _Interrupted(BaseException):
    """One of the signals came that end this tool."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    for each in ENDING_SIGNALS:  # once is enough: the clearing up that follows is bounded in time
        signal.signal(each, signal.SIG_IGN)
    raise _Interrupted(number)


def _run(command: Sequence[str], bootstrap_servers: str) -> int:
    """Run a command that finds Kafka in its environment; return its exit status as a shell would."""
    try:
        process = subprocess.Popen(command, env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers})
    except OSError as error:
        raise LocalKafkaError(f"cannot run {command[0]}: {error.strerror}") from error
    try:
        status = process.wait()
    except _Interrupted as interrupted:
        if interrupted.number == signal.SIGINT:  # a terminal gives Ctrl-C to the command too: let it end its own way
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOPPED_WITHIN)
        raise
    finally:
        _end(process)
    return status if status >= 0 else 128 - status


def _port(text: str) -> int:
    """Read a TCP port that leaves room for two more above it."""
    port = int(text)
    if not 1 <= port <= 65_533:  # noqa: PLR2004 (the highest of three is 65535)
        raise argparse.ArgumentTypeError(f"{port} is not between 1 and 65533")
    return port


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tools.local_kafka", description="Run a real Apache Kafka on this machine."
    )
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1, help="how many (default: 1)")
    parser.add_argument(
        "--port", type=_port, default=9092, help="the first broker's; the others take the next (default: 9092)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="keeps the log for the next start (default: a temporary folder)"
    )
    parser.add_argument(
        "command", nargs="*", metavar="-- COMMAND", help="finds Kafka in KAFKA_BOOTSTRAP_SERVERS; Kafka ends with it"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run Kafka until Ctrl-C, SIGTERM or the end of the command given; return the exit status."""
    options = _options(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tools").setLevel(logging.INFO)
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(number, _interrupt)
    end_with_starters()
    waiting = False
    try:
        with LocalKafka(options.brokers, options.port, options.data) as kafka:
            bootstrap_servers = ",".join(kafka.bootstrap_servers)
            waiting = not options.command  # already when the line is read
            print(f"Kafka is ready: {bootstrap_servers}", flush=True)
            if options.command:
                return _run(options.command, bootstrap_servers)
            kafka.wait()
    except (LocalKafkaError, OSError) as error:
        print(f"local_kafka: {error}", file=sys.stderr)
        return 1
    except _Interrupted as interrupted:
        return 0 if waiting else 128 + interrupted.number  # a signal to stop is the normal end


if __name__ == "__main__":
    sys.exit(main())
