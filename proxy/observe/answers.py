"""Answers of the administration: what a route gives back, and errors that say what is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus

JSON = "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered to a request."""

    body: bytes
    status: int = 200
    kind: str = JSON
    """Its Content-Type."""
    fields: tuple[tuple[str, str], ...] = ()
    """Further header fields."""


class Refused(Exception):
    """A request that is answered with an error; raised by who looks at it."""

    def __init__(self, status: int, why: str, *fields: tuple[str, str]) -> None:
        super().__init__(why)
        self.answer = problem(status, why, *fields)


def report(found: object, status: int = 200) -> Answer:
    """An answer in JSON, laid out for people as well."""
    return Answer(json.dumps(found, indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n", status)


def problem(status: int, why: str, *fields: tuple[str, str]) -> Answer:
    """An answer that says what is wrong."""
    found = {"error": HTTPStatus(status).phrase, "reason": why}
    body = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    return Answer(body, status, fields=fields)
