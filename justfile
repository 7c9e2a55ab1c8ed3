# Every command of the project. `uv run just` lists them.

set positional-arguments

# so that a `just` of the system works too
python := "uv run python"

# Lists these commands.
default:
    @just --list --unsorted

# Kafka, both services and ten people, until Ctrl-C.
[no-exit-message]
demo:
    @{{python}} -m tools.demo

# Unit tests, and the tests on a real Kafka.
[no-exit-message]
test *arguments:
    {{python}} -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder "$@"

# Brokers and services killed, wedged and cut off, while people flow: takes minutes.
[no-exit-message]
test-faults *arguments:
    {{python}} -m pytest tests/faults "$@"

# Calls, records and connections of every wrong kind, many of them: takes minutes; `--fuzz-seed N` tries others.
[no-exit-message]
fuzz *arguments:
    {{python}} -m pytest tests/fuzz --fuzz-examples 100 --fuzz-records 1000000 "$@"

# A local Kafka on port 9092, until Ctrl-C.
[no-exit-message]
kafka *arguments:
    @{{python}} -m tools.local_kafka "$@"

# The producer on port 8000, until Ctrl-C.
[no-exit-message]
run-producer:
    @{{python}} -m tools.local_page producer

# The consumer on port 8001, until Ctrl-C.
[no-exit-message]
run-consumer:
    @{{python}} -m tools.local_page consumer

# Can the producer do its job?
[no-exit-message]
health-producer:
    @{{python}} -m tools.call producer GET /health-check

# Can the consumer do its job?
[no-exit-message]
health-consumer:
    @{{python}} -m tools.call consumer GET /health-check

# Makes N people and sends them.
[no-exit-message]
create-people N="10":
    @{{python}} -m tools.call producer POST "/producers/basic_producer?number_of_people=$1"

# Makes N records of a stream and sends them.
[no-exit-message]
create STREAM N="10":
    @{{python}} -m tools.call producer POST "/producers/$1/generate?number=$2"

# What the consumer is doing.
[no-exit-message]
consumer-status:
    @{{python}} -m tools.call consumer GET /consumers/status

# The newest N records consumed, of the first stream: `consumer-messages 50`; of another one: `consumer-messages orders 50`.
[no-exit-message]
consumer-messages STREAM_OR_N="10" N="10":
    @{{python}} -m tools.call consumer GET "/consumers/messages?$(case "$1" in *[!0-9]*) echo "stream=$1&limit=$2" ;; *) echo "limit=$1" ;; esac)"

# Has the consumer leave its group.
[no-exit-message]
consumer-stop:
    @{{python}} -m tools.call consumer POST /consumers/stop

# Has the consumer join its group again.
[no-exit-message]
consumer-start:
    @{{python}} -m tools.call consumer POST /consumers/start

# Formatting, rules, types and the fast tests: before every commit.
check: lint
    {{python}} -m pytest -q --numprocesses 2 tests/in_memory tests/unit

# Formatting, rules and types.
lint:
    uv run ruff format --check
    uv run ruff check
    uv run mypy

# Writes contracts/STREAM.schema.json of each stream, and how Kubernetes scales its consumers; refused where versions could not live side by side.
[no-exit-message]
schema *arguments:
    @{{python}} -m tools.schema "$@"
    @{{python}} -m tools.scaling

# Writes requirements.lock anew from pyproject.toml; with --upgrade in newer versions.
lock *arguments:
    uv pip compile pyproject.toml --extra tracing --group dev --group kafka --group audit --group build --universal --python-version 3.11 --generate-hashes --custom-compile-command "uv run just lock" --quiet --output-file requirements.lock "$@"

# Downloads Kafka's jars and writes their hashes to tools/kafka_jars.sha256, after an upgrade of Kafka.
[no-exit-message]
pin-kafka:
    @{{python}} -m tools.kafka_distribution

# What is known against the packages of requirements.lock; status 3 when the database could not be asked.
[no-exit-message]
audit:
    @{{python}} -m tools.audit

# Builds the wheel into FOLDER, and installs it there with what it needs in the versions of requirements.lock.
[private]
install-wheel FOLDER:
    uv build --quiet --wheel --build-constraint requirements.lock --require-hashes --out-dir "$1"
    uv pip compile pyproject.toml --extra tracing --constraint requirements.lock --no-header --no-annotate --quiet --output-file "$1/run.txt"
    uv venv --quiet --clear "$1/environment"
    uv pip sync --quiet --python "$1/environment" --constraint requirements.lock --require-hashes "$1/run.txt"
    uv pip install --quiet --python "$1/environment" --no-deps "$1"/*.whl

# Builds the wheel, and runs both services from it with nothing else than what they ask for.
[no-exit-message]
test-wheel *arguments:
    {{python}} -m pytest tests/shipping "$@"

# Writes what ships, with versions and licences, to dist/sbom.cdx.json (CycloneDX).
sbom:
    #!/usr/bin/env bash
    set -euo pipefail
    shipped=$(mktemp -d)
    trap 'rm -rf "$shipped"' EXIT
    just install-wheel "$shipped"
    mkdir -p dist
    cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible --output-file dist/sbom.cdx.json "$shipped/environment"

# Measures the services beside the raw clients and a tutorial-style pair.
[no-exit-message]
bench *arguments:
    uv run --group bench python -m benchmarks "$@"
