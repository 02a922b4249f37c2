"""Answers of proxies, portals and the service to scripted requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kling_async import HttpRequest, HttpResponse
from kling_async.testing import json_response

HTML = b"<html><h1>Please sign in</h1></html>"


def is_read(request: HttpRequest) -> bool:
    return request.url.endswith("/result")


def is_list(request: HttpRequest) -> bool:
    return request.url.endswith("/api/v3/predictions")


def answering(
    chosen: Callable[[HttpRequest], bool], answers: Iterator[HttpResponse | None]
) -> Callable[[HttpRequest, dict[str, Any]], HttpResponse | None]:
    """Return a script that answers the chosen requests one after the other; None answers as usual."""
    return lambda request, _: next(answers, None) if chosen(request) else None


def html(status: int) -> HttpResponse:
    return HttpResponse(status=status, headers={"content-type": "text/html"}, body=HTML)


def said(status: int) -> HttpResponse:
    return json_response({"code": status, "message": "no"}, status=status)
