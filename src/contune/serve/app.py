"""The application: routes, who may ask, and that every answer is one sentence where it is no result."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, final

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from contune.errors import ContuneError, RunDirectoryError
from contune.serve.access import check_access
from contune.serve.bodies import Body
from contune.serve.limits import Limits, Refusal
from contune.serve.openai.routes import WrittenRoutes
from contune.serve.routes import Routes, as_json
from contune.serve.service import Service

CSP = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
UNEXPECTED = "something went wrong here; the server's log says what"
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
log = logging.getLogger("contune.serve")


def app(
    folder: str | Path, *, token: str | None = None, limits: Limits | None = None, every: float = 0.5, **changes: Any
) -> FastAPI:
    """An ASGI application that answers with the live version of a living model's folder.

    `token` is asked for on every route but /health; without one only this machine is answered. The folder's pointer is
    looked at `every` so many seconds. `changes` are keys that may differ here, as `LivingModel.open` takes them. Raises
    ContuneError where the live version cannot be loaded.
    """
    service = Service(Path(folder), limits or Limits(), every, **changes)

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    made = FastAPI(title="contune", docs_url=None, redoc_url=None, lifespan=life, redirect_slashes=False)
    paths = {"/openapi.json"}
    for method, path, handler, form, about in [*Routes(service).table(), *WrittenRoutes(service).table()]:
        extra = None if form is None else {"requestBody": body_schema(form)}
        options = {"methods": [method], "summary": about, "openapi_extra": extra, "response_model": None}
        made.add_api_route(path, handler, **options)
        paths.add(path)
    made.add_exception_handler(Refusal, refused)
    made.add_exception_handler(ContuneError, wrong)
    made.add_exception_handler(HTTPException, no_route)
    made.add_middleware(Guard, service=service, token=token, paths=frozenset(paths))
    return made


@final
class Guard:
    """Around every request: access, headers, time, and that nothing but a sentence comes of an error."""

    def __init__(self, app: Any, service: Service, token: str | None, paths: frozenset[str]) -> None:
        self._app, self._service, self._token, self._paths = app, service, token, paths

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def told(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(key.lower().encode(), value.encode()) for key, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        try:
            await self._answer(scope, receive, told)
        except ClientDisconnect:
            status = 499  # the client has gone before its body was whole; nobody is there to be told
        except Exception:
            log.exception("a request failed")
            if not status:
                await as_json({"error": UNEXPECTED}, 500)(scope, receive, told)
        route = scope["path"] if scope["path"] in self._paths else "other"
        self._service.measures.request(route, status, time.perf_counter() - began)

    async def _answer(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        try:
            check_access(scope["path"], headers.get(b"authorization"), headers.get(b"host"), self._token)
        except Refusal as refusal:
            await told_refusal(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def body_schema(form: type[Body]) -> dict[str, Any]:
    """A body as OpenAPI describes it."""
    schema = form.model_json_schema()
    schema = inlined(schema, schema.pop("$defs", {}))
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def inlined(value: Any, parts: Mapping[str, Any]) -> Any:
    """A schema with its own parts in place of references to them, which would be looked for in the whole document.

    >>> inlined({"items": {"$ref": "#/$defs/A"}}, {"A": {"type": "string"}})
    {'items': {'type': 'string'}}
    """
    if isinstance(value, list):
        return [inlined(one, parts) for one in value]
    if not isinstance(value, Mapping):
        return value
    if "$ref" in value:
        return inlined(parts[value["$ref"].rpartition("/")[2]], parts)
    return {key: inlined(one, parts) for key, one in value.items()}


def told_refusal(refusal: Refusal) -> Response:
    """A refusal as a response."""
    return as_json({"error": refusal.sentence}, refusal.status, refusal.headers)


async def refused(_request: Request, error: Refusal) -> Response:
    """What a client has done wrong, or what is too much."""
    return told_refusal(error)


async def wrong(_request: Request, error: ContuneError) -> Response:
    """What contune says of a request: the folder stands against it (409), or it makes no sense (422)."""
    return as_json({"error": " ".join(str(error).split())}, 409 if isinstance(error, RunDirectoryError) else 422)


async def no_route(_request: Request, error: HTTPException) -> Response:
    """No such route, or another method."""
    sentences = {404: "there is no such route; /openapi.json lists them", 405: "this route takes another method"}
    return as_json({"error": sentences.get(error.status_code, str(error.detail))}, error.status_code, error.headers)
