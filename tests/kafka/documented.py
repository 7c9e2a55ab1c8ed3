"""The calls of an OpenAPI document, each as somebody who tries it out on the page would make it first."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Call(NamedTuple):
    """A documented call with its documented example; `answers` has the media types of each documented status."""

    method: str
    path: str
    query: dict[str, str]
    media_type: str | None
    body: bytes | None
    answers: dict[int, set[str]]

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.media_type or ''}".strip()

    @property
    def options(self) -> dict[str, Any]:
        """The options of httpx that make the call."""
        return {
            "params": self.query,
            "content": self.body,
            "headers": {"content-type": self.media_type} if self.media_type else {},
        }


def operations_of(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield method, path and operation of everything in a document."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method.upper(), path, operation


def calls_of(document: Mapping[str, Any]) -> Iterator[Call]:
    """Yield every documented call with its example, once for each kind of body."""
    for method, path, operation in operations_of(document):
        values = {p["name"]: (p["in"], example_of(p)) for p in operation.get("parameters", [])}
        in_path = {name: value for name, (place, value) in values.items() if place == "path"}
        query = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, (place, value) in values.items()
            if place == "query" and value is not None
        }
        answers = {int(status): set(answer.get("content", {})) for status, answer in operation["responses"].items()}
        bodies = operation.get("requestBody", {}).get("content") or {None: {}}
        for media_type, content in bodies.items():
            body = _bytes_of(example_of(content)) if media_type else None
            yield Call(method, path.format(**in_path), query, media_type, body, answers)


def example_of(described: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    """Return the first example of a parameter or a body, or the default of one that has none."""
    if "example" in described:
        return described["example"]
    if examples := described.get("examples"):
        return next(iter(examples.values()))["value"]
    return described.get("schema", {}).get("default")


def _bytes_of(example: object) -> bytes:
    return example.encode() if isinstance(example, str) else json.dumps(example).encode()
