"""The page at `/`: one file, complete in itself, which asks /stats and /hotkeys again and again."""

from __future__ import annotations

from importlib import resources

from proxy.observe.admin import Admin
from proxy.observe.answers import Answer
from proxy.observe.http import Request
from proxy.observe.routes import parameters

HTML = "text/html; charset=utf-8"
FIELDS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)
"""Whatever a key's name may hold, the page runs and loads nothing but itself."""


def add_page(admin: Admin) -> None:
    """Have it served."""
    admin.add("GET", "/", _page)


def _page(request: Request) -> Answer:
    parameters(request)
    found = resources.files("proxy.observe").joinpath("dashboard/index.html").read_bytes()
    return Answer(found, kind=HTML, fields=FIELDS)
