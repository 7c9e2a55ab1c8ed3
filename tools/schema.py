"""Writes the JSON schema of each stream, `contracts/STREAM.schema.json`: `python -m tools.schema`.

A version that could not be read by services that run the version written there, or could not read what they wrote, is
not written: the reasons are printed on standard error, and the status is 1. `--break` writes it all the same, for when
nothing of the old version is left, no service and no record.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from contracts import STREAMS
from contracts.stream import Stream
from tools.compatibility import incompatibilities

FOLDER = Path(__file__).parents[1] / "contracts"
REMEDY = (
    "Give a new field a default, and keep the others. Only when nothing of the old version is left, no service and no "
    "record, as before the first deploy: `uv run just schema --break`"
)


def schema_of(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - a type, or a union of types
    """Return the JSON schema of a type.

    A `datetime` or a `time` is distinguished from other text only when it must have a zone (`Meta(tz=True)`).
    """
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}


def file_of(stream: Stream[Any], folder: Path = FOLDER) -> Path:
    """Return the file that keeps a stream's schema."""
    return folder / f"{stream.name}.schema.json"


def main(
    arguments: Sequence[str] | None = None, streams: Sequence[Stream[Any]] = STREAMS, folder: Path = FOLDER
) -> int:
    """Write the files, and return the exit status."""
    parser = argparse.ArgumentParser(description="Write the JSON schema of what stands on each topic.")
    parser.add_argument("--break", action="store_true", dest="breaking", help="also when it is not compatible")
    breaking = parser.parse_args(arguments).breaking
    status = 0
    for stream in streams:
        file, new = file_of(stream, folder), schema_of(stream.record_type)
        wrong = incompatibilities(json.loads(file.read_text()), new) if file.exists() else []
        if wrong and not breaking:
            print(f"{file.name} is left as it was:", *wrong, REMEDY, sep="\n", file=sys.stderr)
            status = 1
        else:
            text = json.dumps(new, indent=2, ensure_ascii=False) + "\n"
            is_new = not file.exists() or file.read_text("utf-8") != text
            file.write_text(text, encoding="utf-8")
            print(f"{file.name} {'is written: commit it' if is_new else 'is up to date'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
