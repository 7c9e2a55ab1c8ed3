"""Writes the JSON schema of what stands on the topic, `contracts/person.schema.json`: `python -m tools.schema`.

A version of `Person` that could not be read by services that run the version written there, or could not read what
they wrote, is not written: the reasons are printed on standard error, and the status is 1. `--break` writes it all the
same, for when nothing of the old version is left, no service and no record.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from contracts.person import Person
from tools.compatibility import incompatibilities

FILE = Path(__file__).parents[1] / "contracts" / "person.schema.json"


def schema_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON schema of a Struct.

    A `datetime` or a `time` is told from any other text only when it must have a zone (`Meta(tz=True)`).
    """
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}


def main() -> int:
    """Write the file, and return the exit status."""
    parser = argparse.ArgumentParser(description="Write the JSON schema of what stands on the topic.")
    parser.add_argument("--break", action="store_true", dest="breaking", help="also when it is not compatible")
    breaking = parser.parse_args().breaking
    new = schema_of(Person)
    wrong = incompatibilities(json.loads(FILE.read_text()), new) if FILE.exists() else []
    if wrong and not breaking:
        print(f"{FILE.name} is left as it was:", *wrong, sep="\n", file=sys.stderr)
        return 1
    FILE.write_text(json.dumps(new, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
