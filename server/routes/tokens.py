"""`POST /tokenize`: the tokens of a prompt, images included, without generating."""

from __future__ import annotations

from time import monotonic

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from models.inputs import Prompt
from server.answer.deadline import Deadline
from server.api.objects import Tokens
from server.api.openapi import documented
from server.api.prompts import Conversation, text_prompt
from server.api.schemas_text import TokenizeRequest, parse_tokenize_request
from server.api.served import Served
from server.http.body import as_json
from server.http.streaming import unless_gone
from server.media.images import RequestImages
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The route of counting tokens."""
    router = APIRouter()

    @router.post("/tokenize", **documented(Tokens, body=TokenizeRequest))
    async def tokenize(http: HttpRequest) -> Response:
        deadline = Deadline.of(http, monotonic(), service.settings.request_seconds)
        with service.admission(http) as admission:
            wanted = parse_tokenize_request(await service.body(http))
            if wanted.model is not None:
                service.check_model(wanted.model, "model")
            served = service.require_served()
            conversation = Conversation(wanted.messages or ())
            images = conversation.image_urls(service.settings)

            def prompt(found: RequestImages) -> Prompt:
                if wanted.prompt is not None:
                    return text_prompt(wanted.prompt, served, service.settings)
                return conversation.prompt(served, service.settings, found)

            made = await unless_gone(http.receive, service.prepared(admission, images, prompt, deadline))
        return as_json(_tokens(made, served, named=bool(wanted.return_token_strs)))

    return router


def _tokens(prompt: Prompt, served: Served, *, named: bool) -> Tokens:
    tokens: Tokens = {
        "count": len(prompt.ids),
        "max_model_len": served.info.context_length,
        "image_tokens": prompt.image_tokens,
        "tokens": prompt.ids,
    }
    if named:
        vocabulary = served.decoder.vocabulary
        tokens["token_strs"] = [vocabulary.bytes_of(token).decode(errors="replace") for token in prompt.ids]
    return tokens
