"""The demo with people kept in SQLite, exactly once, by examples/sqlite.py. The database ends with the demo."""

import os
import sqlite3
import tempfile
from contextlib import closing

from tools import demo

CITIES = 5
"""Cities that are shown."""
SUM = "SELECT sum(records) FROM cities"
SEEK = """curl -X POST localhost:8001/consumers/seek -H 'content-type: application/json' -d '{"to": "beginning"}'"""


def main() -> None:
    """Run the demo, and show what is in the tables."""
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        file = os.environ.setdefault("SQLITE_FILE", f"{folder}/people.db")
        demo.main(consumer=("examples", "sqlite"), show_more=lambda: _show_tables(file))


def _show_tables(file: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        people, origins = (connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("people", "origins"))  # noqa: S608 - the two names here
        total = connection.execute(SUM).fetchone()[0]
        cities = connection.execute("SELECT city, records FROM cities ORDER BY records DESC, city LIMIT ?", (CITIES,))
        print(f"\n{file} has {people} people from {origins} records; records by city:\n")
        for city, records in cities:
            print(f"  {records:>4}  {city}")
    print(f"\nEach record counts once. `{SUM}` finds {total}, also after all are read again by\n")
    print(f"  {SEEK}\n\nCtrl-C deletes the file, unless SQLITE_FILE named it.")


if __name__ == "__main__":
    main()
