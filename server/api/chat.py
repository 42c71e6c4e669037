"""Chat completions: a validated request -> prompts for the engine, and the answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from server.answer.choices import Choices
from server.answer.parser import Parser
from server.api.answer_fields import GuardOptions
from server.api.chat_answer import ChatAnswer
from server.api.chat_request import ChatCompletionRequest, parse_chat_request
from server.api.job import Intake
from server.api.moderations import is_openai_moderator
from server.api.prepare import answer_limit, asks_of, sampling_params
from server.api.prompts import Conversation
from server.api.schemas import WantedSchema
from server.api.served import Served
from server.api.tool_use import ToolUse
from server.api.tools import Tools, tools_of
from server.errors import BadRequest, Forbidden
from server.media.images import RequestImages
from server.request import Ask
from server.settings.schema import Settings
from steering.policy import Mode, Policy


@dataclass(frozen=True)
class ChatJob:
    """A job that answers with a chat completion."""

    prefix: ClassVar[str] = "chatcmpl-"
    chat: ChatCompletionRequest
    tools: Tools | None
    ignored: Collection[str]

    @classmethod
    def of(cls, body: object) -> ChatJob:
        """A decoded JSON body as a job. Raises BadRequest naming the first field that is wrong."""
        chat = parse_chat_request(body)
        tools = tools_of(chat.tools, chat.tool_choice, parallel=chat.parallel_tool_calls)
        ignored = {*chat.ignored()}
        if chat.moderation is not None and is_openai_moderator(chat.moderation.model):
            ignored.add("moderation.model")
        return cls(chat, tools, ignored)

    @property
    def models(self) -> Mapping[str, str]:
        """The model that answers, and the one that moderates."""
        models = {"model": self.chat.model}
        if self.chat.moderation is not None and not is_openai_moderator(self.chat.moderation.model):
            models["moderation.model"] = self.chat.moderation.model
        return models

    @property
    def guard(self) -> GuardOptions | None:
        """What the request wishes its guard to be."""
        return self.chat.guard

    @property
    def places(self) -> tuple[int, str]:
        """One generation for each choice."""
        return self.chat.choices, "n"

    @property
    def stops(self) -> Sequence[str]:
        """Strings that end an answer."""
        return self.chat.stop or ()

    @property
    def tool_use(self) -> ToolUse:
        """The tools, together with `response_format`."""
        wanted = self.chat.answer_schema
        if wanted is None:
            return ToolUse(self.tools)
        assert self.chat.response_format is not None
        field = "value" if self.chat.response_format.type == "json_object" else "json_schema"
        return ToolUse(self.tools, wanted, f"response_format.{field}")

    def schema(self, served: Served) -> WantedSchema | None:
        """What tools and `response_format` bind the answer to."""
        return self.tool_use.schema(served)

    def parser(self, served: Served) -> Parser:
        """What tells calls from text."""
        return self.tool_use.parser(served)

    def check(self, intake: Intake) -> None:
        """Raise BadRequest for what does not go with tools or JSON, Forbidden for what the client's policy forbids."""
        Conversation(self.chat.messages).check_last(intake)
        self.tool_use.check(self.chat, intake.served, intake.settings)
        if self.chat.wants_scores and not intake.terms.token_scores:
            raise Forbidden(
                f"'guard.scores' is not for the policy {intake.policy.name!r} (token_scores).",
                param="guard.scores",
                code="token_scores_off",
            )

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URLs of the images in all messages. Raises BadRequest if they are too many, or not read."""
        return Conversation(self.chat.messages).image_urls(served, settings)

    def prepare(self, intake: Intake, images: RequestImages) -> list[Ask]:
        """One request for each choice of the one prompt. Raises BadRequest naming the field and the limit."""
        chat, served, settings = self.chat, intake.served, intake.settings
        sampling = sampling_params(chat, served)
        policy = moderated_policy(intake.policy, chat, guarded=served.layer is not None)
        prompt = Conversation(chat.messages).prompt(served, settings, images, self.tool_use.told(served))
        limit = answer_limit(chat, prompt, served, settings.default_max_tokens, "messages")
        intake = replace(intake, policy=policy)
        return asks_of(intake, [(prompt, limit)], chat.choices, sampling, scores=chat.wants_scores)

    def answer(self, intake: Intake, choices: Choices) -> ChatAnswer:
        """The answer as a `chat.completion`, or its chunks."""
        # What is long would stay in memory until the answer's end.
        bare = self.chat.model_copy(update={"messages": [], "tools": None})
        ignored = {*self.ignored, *self.tool_use.ignored(intake.served)}
        forced = self.tools is not None and self.tools.forced
        return ChatAnswer(intake.answer_id, choices, bare, intake.served, ignored, forced=forced)


def moderated_policy(policy: Policy, chat: ChatCompletionRequest, *, guarded: bool) -> Policy:
    """The policy of a request that asks to be scored, or blocked where it is flagged. Raises BadRequest."""
    moderation = chat.moderation
    if moderation is None and not chat.wants_scores:
        return policy
    if moderation is None or not moderation.blocks:
        return policy.in_mode(Mode.MONITOR) if guarded and policy.mode is Mode.OFF else policy
    if not guarded:
        raise BadRequest(
            "'moderation.policy.input.mode' is 'block', but this server has no guard.",
            param="moderation.policy.input.mode",
        )
    return policy.in_mode(Mode.BLOCK)
