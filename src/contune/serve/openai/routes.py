"""`/v1/models`, `/v1/chat/completions` and `/v1/completions`, for models that write."""

import time
import uuid
from collections.abc import Sequence
from typing import Any, final

from fastapi import Request, Response

from contune.serve.bodies import Body
from contune.serve.keeper import Reply
from contune.serve.limits import Refusal, check_inputs
from contune.serve.openai.bodies import ChatBody, CompletionBody, conversation_of
from contune.serve.openai.replies import chat_reply, completion_reply, models, pinned, require_version
from contune.serve.routes import as_json, read_request
from contune.serve.service import Service


@final
class WrittenRoutes:
    """Handlers of one service whose model writes; others are told where to ask."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._started = int(time.time())

    def table(self) -> list[tuple[str, str, Any, type[Body] | None, str]]:
        """As `Routes.table`."""
        return [
            ("GET", "/v1/models", self.models, None, "The names by which a model that writes can be asked."),
            ("POST", "/v1/chat/completions", self.chat, ChatBody, "Answer a conversation in writing."),
            ("POST", "/v1/completions", self.completions, CompletionBody, "Answer prompts in writing."),
        ]

    async def models(self, request: Request) -> Response:
        """The list, empty where the model answers with labels."""
        version = self._service.keeper.standing
        found = models(self._service.name, version, self._started)
        return as_json(found if version.writes else {**found, "data": []})

    async def chat(self, request: Request) -> Response:
        """A conversation."""
        body = await read_request(request, ChatBody, self._service.limits)
        reply = await self._reply(body.model, [conversation_of(body, self._service.limits)])
        return as_json(chat_reply(reply, self._service.name, uuid.uuid4().hex, int(time.time())))

    async def completions(self, request: Request) -> Response:
        """Prompts."""
        body = await read_request(request, CompletionBody, self._service.limits)
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        check_inputs(prompts, self._service.limits)
        reply = await self._reply(body.model, prompts)
        return as_json(completion_reply(reply, self._service.name, uuid.uuid4().hex, int(time.time())))

    async def _reply(self, model: str, inputs: Sequence[Any]) -> Reply:
        """What is written; by the version that the name asks for, also where another one came while it waited."""
        service = self._service
        if not service.keeper.standing.writes:
            raise Refusal(409, "this model answers with labels and writes no text; ask POST /v1/predict")
        named = pinned(model, service.name, service.keeper.standing)
        reply = await service.reply(inputs, None)
        if named is not None:
            require_version(model, service.name, reply.version)
        return reply
