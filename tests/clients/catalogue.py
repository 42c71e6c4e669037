"""Which clients there are: what is installed for each, and how its program is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Client:
    """A client and its program. `packages`: of PyPI, or of npm where the program is a module for Node.

    Clients of the same `packages` share an environment. `demo`: it asks the bundled model, not the scripted engine.
    """

    name: str
    program: str
    packages: Sequence[str]
    arguments: Sequence[str] = ()
    demo: bool = False

    @property
    def for_node(self) -> bool:
        """Whether it runs in Node."""
        return self.program.endswith(".mjs")


_AGENTS = ["openai-agents"]
_LANGCHAIN = ["langchain-openai"]
_OPENAI = ["openai"]
_PYDANTIC_AI = ["pydantic-ai-slim[openai]"]

CLIENTS: Mapping[str, Client] = {
    client.name: client
    for client in (
        Client("openai, chat", "openai_chat.py", _OPENAI),
        Client("openai, responses", "openai_responses.py", _OPENAI),
        Client("openai for Node", "openai_node.mjs", ["openai"]),
        Client("anthropic", "anthropic_messages.py", ["anthropic"]),
        Client("langchain, chat", "langchain_chat.py", _LANGCHAIN),
        Client("langchain, responses", "langchain_chat.py", _LANGCHAIN, ["responses"]),
        Client("litellm", "litellm_sdk.py", ["litellm"]),
        Client("instructor", "instructor_chat.py", ["instructor"]),
        Client("pydantic-ai, chat", "pydantic_ai_agents.py", _PYDANTIC_AI),
        Client("pydantic-ai, responses", "pydantic_ai_agents.py", _PYDANTIC_AI, ["responses"]),
        Client("openai-agents, chat", "openai_agents.py", _AGENTS, ["chat"]),
        Client("openai-agents, responses", "openai_agents.py", _AGENTS),
        Client(
            "AI SDK, openai-compatible", "ai_sdk.mjs", ["ai", "@ai-sdk/openai-compatible", "zod"], ["openai-compatible"]
        ),
        Client("AI SDK, openai", "ai_sdk.mjs", ["ai", "@ai-sdk/openai", "zod"], ["openai"]),
        Client("llama-index", "llama_index_like.py", ["llama-index-llms-openai-like"]),
        Client("Open WebUI, as recorded", "open_webui.py", ["httpx", "pydantic"]),
        Client("lm-eval", "lm_eval_choices.py", ["lm-eval[api]", "transformers"], demo=True),
        Client("guidellm", "guidellm_load.py", ["guidellm"], demo=True),
        Client("garak", "garak_probe.py", ["garak"], demo=True),
        Client("promptfoo", "promptfoo_eval.mjs", ["promptfoo"], demo=True),
    )
}
