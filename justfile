# Every command of the project. `uv run just` lists them.

set positional-arguments
set dotenv-load # settings in a file `.env` here; the environment's own win

# makes a system-wide `just` work too
python := "uv run python"
dev := "uv run --group dev"

# Lists these commands.
default:
    @just --list --unsorted

# Starts Kafka and both services and sends ten people; ends at Ctrl-C.
[no-exit-message]
demo:
    @{{python}} -m tools.demo

# Runs the demo with services that start again when their code changes.
[no-exit-message]
dev:
    @{{python}} -m tools.dev

# Runs the demo with people kept in SQLite, exactly once: examples/sqlite.py.
[no-exit-message]
demo-database:
    @{{python}} -m tools.demo_database

# Runs the unit tests, the tests on a real Kafka and those in a browser.
[no-exit-message]
test *arguments:
    PYTHONDONTWRITEBYTECODE= {{dev}} python -m pytest --numprocesses 5 --dist loadfile --no-loadscope-reorder "$@"

# Runs tests that kill, freeze and disconnect brokers and services: takes minutes.
[no-exit-message]
test-faults *arguments:
    {{dev}} python -m pytest tests/faults "$@"

# Runs tests that send malformed calls, records and connections: takes minutes; `--fuzz-seed N` chooses others.
[no-exit-message]
fuzz *arguments:
    {{dev}} python -m pytest tests/fuzz --fuzz-examples 100 --fuzz-records 1000000 "$@"

# Starts a local Kafka on port 9092; ends at Ctrl-C.
[no-exit-message]
kafka *arguments:
    @{{python}} -m tools.local_kafka "$@"

# Starts a PostgreSQL for examples/postgres.py, and prints its DATABASE_URL; its data ends with it, at Ctrl-C.
[no-exit-message]
postgres:
    @{{dev}} python -m tools.local_postgres

# Starts the producer on port 8000; ends at Ctrl-C. `run-producer --help` lists its settings.
[no-exit-message]
run-producer *arguments:
    @{{python}} -m tools.local_page producer "$@"

# Starts the consumer on port 8001; ends at Ctrl-C. `run-consumer --help` lists its settings.
[no-exit-message]
run-consumer *arguments:
    @{{python}} -m tools.local_page consumer "$@"

# Shows the health of the producer.
[no-exit-message]
health-producer:
    @{{python}} -m tools.call producer GET /health-check

# Shows the health of the consumer.
[no-exit-message]
health-consumer:
    @{{python}} -m tools.call consumer GET /health-check

# Generates N people and sends them.
[no-exit-message]
create-people N="10":
    @{{python}} -m tools.call producer POST "/producers/basic_producer?number_of_people=$1"

# Generates N records of a stream and sends them.
[no-exit-message]
create STREAM N="10":
    @{{python}} -m tools.call producer POST "/producers/$1/generate?number=$2"

# Shows the status of the consumer, or of one stream.
[no-exit-message]
consumer-status STREAM="":
    @{{python}} -m tools.call consumer GET "/consumers/status${1:+?stream=$1}"

# Shows the newest N consumed records of the first stream: `consumer-messages 50`; of another stream: `consumer-messages orders 50`.
[no-exit-message]
consumer-messages STREAM_OR_N="10" N="10":
    @{{python}} -m tools.call consumer GET "/consumers/messages?$(case "$1" in *[!0-9]*) echo "stream=$1&limit=$2" ;; *) echo "limit=$1" ;; esac)"

# Stops consuming, all streams or one: the consumer leaves its group.
[no-exit-message]
consumer-stop STREAM="":
    @{{python}} -m tools.call consumer POST "/consumers/stop${1:+?stream=$1}"

# Starts consuming again, all streams or one: the consumer joins its group.
[no-exit-message]
consumer-start STREAM="":
    @{{python}} -m tools.call consumer POST "/consumers/start${1:+?stream=$1}"

# Checks formatting, lint and types, and runs the fast tests: before every commit.
[parallel]
check: lint fast-tests

[private]
fast-tests:
    PYTHONDONTWRITEBYTECODE= {{dev}} python -m pytest -q --numprocesses 4 -m "not slow" tests/in_memory tests/unit

# Checks formatting, lint and types.
lint:
    {{dev}} ruff format --check
    {{dev}} ruff check
    {{dev}} mypy

# Writes the JSON schema of each stream to contracts/, and its scaling to deploy/; refuses an incompatible change of a message type.
[no-exit-message]
schema *arguments:
    @{{dev}} python -m tools.schema "$@"
    @{{python}} -m tools.scaling

# Starts a project of your own in FOLDER, named like it, with a stream of your own: `new-project ../sensor-feed sensor-readings`.
[no-exit-message]
new-project FOLDER STREAM="orders":
    @{{dev}} python -m tools.new_project "$@"

# Writes requirements.lock from pyproject.toml, its pins into that, and .ci/uv.txt; --upgrade takes newer versions. After a change: `uv run --no-sync just lock`.
lock *arguments:
    uv pip compile .ci/uv.in --universal --generate-hashes --no-annotate --no-header --quiet --output-file .ci/uv.txt
    uv run --no-project python -m tools.lock "$@"

# Downloads Kafka's jars and writes their hashes to tools/kafka_jars.sha256, after an upgrade of Kafka.
[no-exit-message]
pin-kafka:
    @{{python}} -m tools.kafka_distribution

# Lists known vulnerabilities of the packages in requirements.lock; status 3 when the database cannot be reached.
[no-exit-message]
audit:
    @uv run --group audit python -m tools.audit

# Builds the wheel into FOLDER, and installs it there with its dependencies in the versions of requirements.lock.
[private]
install-wheel FOLDER:
    uv build --quiet --wheel --build-constraint requirements.lock --require-hashes --out-dir "$1"
    uv pip compile pyproject.toml --extra tracing --extra oidc --constraint requirements.lock --no-header --no-annotate --quiet --output-file "$1/run.txt"
    uv venv --quiet --clear "$1/environment"
    uv pip sync --quiet --python "$1/environment" --constraint requirements.lock --require-hashes "$1/run.txt"
    uv pip install --quiet --python "$1/environment" --no-deps "$1"/*.whl

# Builds the wheel, and runs both services from it with nothing but its dependencies.
[no-exit-message]
test-wheel *arguments:
    {{dev}} python -m pytest tests/shipping "$@"

# Writes a list of what ships, with versions and licences, to dist/sbom.cdx.json (CycloneDX).
sbom:
    #!/usr/bin/env bash
    set -euo pipefail
    shipped=$(mktemp -d)
    trap 'rm -rf "$shipped"' EXIT
    just install-wheel "$shipped"
    mkdir -p dist
    uv run --group audit cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible --output-file dist/sbom.cdx.json "$shipped/environment"

# Compares the speed of the services with raw clients and tutorial-style services.
[no-exit-message]
bench *arguments:
    {{dev}} --group bench python -m benchmarks "$@"
