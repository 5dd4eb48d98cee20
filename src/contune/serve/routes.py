"""The routes: a body in, a body out. What they do is in `service`."""

import asyncio
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, final

from fastapi import Request, Response

from contune.run.report.page import stylesheet
from contune.serve.bodies import B, Body, FeedbackBody, PredictBody, PromoteBody, RollbackBody, read_body
from contune.serve.limits import Limits, Refusal, check_length
from contune.serve.measures import TEXT_TYPE
from contune.serve.page import render_start
from contune.serve.service import Service

JSON_TYPE = "application/json"


@final
class Routes:
    """Handlers of one service; `table` says where each is."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def table(self) -> list[tuple[str, str, Any, type[Body] | None, str]]:
        """Method, path, handler, the body it reads, and what it is for."""
        return [
            ("GET", "/", self.start, None, "What answers now, its versions, traffic and latency, as a page."),
            ("GET", "/style.css", self.style, None, "How the page looks."),
            ("POST", "/v1/predict", self.predict, PredictBody, "Answer texts, all by one version."),
            (
                "POST",
                "/v1/feedback",
                self.feedback,
                FeedbackBody,
                "Say what would have been right, for the next update.",
            ),
            ("GET", "/v1/versions", self.versions, None, "All versions and which of them answers."),
            ("GET", "/health", self.health, None, "Whether the process is alive."),
            ("GET", "/ready", self.ready, None, "Whether it can answer, and whether the live version could be loaded."),
            ("GET", "/metrics", self.metrics, None, "Counters in Prometheus' text format."),
            ("POST", "/admin/reload", self.reload, None, "Load the live version, also after it has failed."),
            ("POST", "/admin/promote", self.promote, PromoteBody, "Let a version answer."),
            ("POST", "/admin/rollback", self.rollback, RollbackBody, "Go back to an earlier version."),
        ]

    async def start(self, request: Request) -> Response:
        """The start page."""
        rows = await self._service.rows()
        page = await asyncio.to_thread(render_start, self._service, rows)
        return Response(page, media_type="text/html; charset=utf-8")

    async def style(self, request: Request) -> Response:
        """The rules that all pages share, and those of badges."""
        css = stylesheet() + files("contune.living.pages").joinpath("page.css").read_text(encoding="utf-8")
        return Response(css, media_type="text/css; charset=utf-8")

    async def predict(self, request: Request) -> Response:
        """Labels and scores."""
        return as_json(await self._service.predict(await read_request(request, PredictBody, self._service.limits)))

    async def feedback(self, request: Request) -> Response:
        """A right label."""
        return as_json(await self._service.feedback(await read_request(request, FeedbackBody, self._service.limits)))

    async def versions(self, request: Request) -> Response:
        """The history, as `contune history --json` has it, and the number of the version that answers here."""
        rows = await self._service.rows()
        values = [row.values() for row in rows]
        return as_json({"answers": self._service.keeper.standing.number, "versions": values})

    async def health(self, request: Request) -> Response:
        """Alive."""
        return as_json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """What answers; 503 where nothing can."""
        found = self._service.standing()
        return as_json(found, 200 if found["ready"] else 503)

    async def metrics(self, request: Request) -> Response:
        """Counters."""
        text = self._service.measures.text(self._service.batcher.waiting, self._service.keeper.held)
        return Response(text, headers={"Content-Type": TEXT_TYPE})

    async def reload(self, request: Request) -> Response:
        """Follow the pointer now."""
        require_json(request)
        return as_json(await self._service.reload())

    async def promote(self, request: Request) -> Response:
        """Let a version answer."""
        body = await read_request(request, PromoteBody, self._service.limits)
        step = self._service.move(body.version, lambda model, to: model.promote(to, body.reason))
        return as_json(await step)

    async def rollback(self, request: Request) -> Response:
        """Go back."""
        body = await read_request(request, RollbackBody, self._service.limits)
        step = self._service.move(body.version, lambda model, to: model.rollback(to, reason=body.reason))
        return as_json(await step)


async def read_request(request: Request, form: type[B], limits: Limits) -> B:
    """The body of a request, no longer and no slower than the limits allow."""
    require_json(request)
    said = request.headers.get("content-length", "0")
    check_length(int(said) if said.isdecimal() and len(said) < 20 else limits.body_bytes + 1, limits)
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                data += chunk
                check_length(len(data), limits)
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {limits.body_seconds:g} s; send it again") from None
    return read_body(form, bytes(data))


def require_json(request: Request) -> None:
    """Refuse what a form on another site's page could send through somebody's browser."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != JSON_TYPE:
        raise Refusal(415, f"send JSON, with the header Content-Type: {JSON_TYPE}")


def as_json(value: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON in ASCII, so that no text, whatever is in it, can fail to be sent."""
    data = json.dumps(value, allow_nan=False).encode()
    return Response(data, status, dict(headers or {}), media_type=JSON_TYPE)
