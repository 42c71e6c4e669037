"""The server's settings: validated once, frozen. `server.settings.sources` reads them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, WrapValidator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from server.settings.checks import check_keys, check_policies
from server.settings.decode_memory import decode_bytes
from server.settings.groups import (
    AuditSettings,
    KeySettings,
    MediaSettings,
    PolicySettings,
    ShadowSettings,
    joined_output,
    read_keys,
)
from server.settings.loopback import is_loopback
from server.settings.units import MEBI
from server.settings.values import DEFAULT_POLICY, Change, Count, Device, Endpoint, Name, Seconds, Word, Words

LogFormat = Literal["json", "text"]
EngineName = Literal["own", "vllm"]


def _fixed(default: object, description: str) -> Any:  # noqa: ANN401  as pydantic's own Field
    """A setting that cannot change while the server runs."""
    return Field(default, description=description, json_schema_extra={"fixed": True})


class Settings(BaseSettings, PolicySettings):
    """Everything that can be set; the fields of the policy `default` are among them."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    # what is served
    model: str | None = _fixed(None, "Hub id or folder; the bundled demo model where not given.")
    guard: str | None = _fixed(
        None, "Guard bundle folder, or `none`; the demo model's guard for the demo model, none for another."
    )
    served_model_name: Word | None = _fixed(None, "The model's name in the API.")
    model_aliases: Words = Field(
        default=(), description="Other names that the model answers to in the API; `*` for any."
    )
    cors_origins: Words = _fixed(
        (), "Origins whose pages may call the API in a browser, such as `https://chat.example.com`; `*` for all."
    )
    revision: str | None = _fixed(None, "Branch, tag or commit of a hub model.")
    engine: EngineName = _fixed("own", "What computes: `own`, or `vllm`, which the extra of that name installs.")
    tensor_parallel: Count = _fixed(1, "Processes that share the model, with `engine: vllm`.")
    device: Device = _fixed("auto", "`auto`, `cpu`, `cuda`, `cuda:0`, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _fixed(
        "auto",
        "`auto`, `float32`, `bfloat16` or `float16`; `auto`: bfloat16 where the device computes in it, else float32.",
    )

    # where
    host: str = _fixed("127.0.0.1", "Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = _fixed(8000, "Port to listen on; 0 is any free one.")
    access_log: bool = _fixed(default=False, description="Log one line per request.")
    otlp_endpoint: Endpoint | None = _fixed(
        None, "Collector that traces go to by OTLP over HTTP; `OTEL_EXPORTER_OTLP_ENDPOINT` where not given, else none."
    )
    log_format: LogFormat = _fixed("text", "`text`, or `json`: each line of the log an object.")

    # who may ask, and under what
    policies: dict[Name, PolicySettings] = Field(default={}, description="Named policies.")
    keys: Annotated[tuple[KeySettings, ...], WrapValidator(read_keys)] = Field(
        default=(), description="API keys; without any everybody is served as `anonymous`, which `none` spells out."
    )
    revoked_keys: tuple[Name, ...] = Field(
        default=(), description="Names of keys that are no longer accepted, whether `keys` still has them or not."
    )
    loosens: Change | None = Field(
        default=None,
        description="The one change by which a reload may loosen what is in effect, as a refused one names it.",
    )
    console: bool | None = Field(
        default=None,
        description="Whether there is the console; if not given, where a key of scope `console` opens it, or there are "
        "no keys and `host` is a loopback address.",
    )
    metrics_key: bool = Field(default=False, description="Whether `/metrics` needs an API key too.")
    audit: AuditSettings | None = _fixed(None, "The audit log; none where not given.")

    shadow: ShadowSettings | None = _fixed(
        None, "A guard or threshold that is tried on live traffic; none if not given."
    )

    # load
    max_rows: Count = _fixed(64, "Requests generated at the same time.")
    max_queue: Annotated[int, Field(ge=0)] = _fixed(256, "Requests that may wait; more are answered with 429.")
    prefill_tokens: Count = _fixed(4096, "Prompt tokens computed in one step, at most; longer prompts take several.")
    max_gap_ms: Count = _fixed(
        300, "Milliseconds that a step may take to compute prompts beside running answers; 1 or 2 in 100 take longer."
    )
    cache_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = _fixed(
        None, "Memory of the KV cache; if not given what max_rows whole contexts take, within a share of the memory."
    )
    prefix_cache: bool = _fixed(True, "Keep what prompts begin with in the KV cache, for prompts that begin alike.")
    image_cache_mib: Annotated[int, Field(ge=0)] = _fixed(
        128, "Memory for images that were seen, by content, in each of the two processes; 0 for none."
    )
    threads: Count | None = _fixed(
        None,
        "Threads of the model on a CPU; if not given one for a small model, else one for each core within the quota.",
    )
    quantize: Literal["none", "int8"] = _fixed("none", "Weights of the decoder's layers in 8 bits, on a CPU.")
    cuda_graphs: bool = _fixed(True, "Record steps as CUDA graphs at start, on a GPU.")
    prepare_threads: Count = _fixed(2, "Threads that decode images and render prompts.")
    pool_seconds: Seconds = Field(
        default=60.0,
        description="How long requests may wait for worker threads with none becoming free; then `/ready` says 503.",
    )
    max_connections: Count | None = _fixed(
        None, "Open connections; if not given, and at most, what the limit of descriptors allows. Idle ones make room."
    )
    drain_seconds: Seconds = _fixed(30.0, "How long running requests may go on after SIGTERM.")
    engine_failure: Literal["restart", "exit"] = _fixed(
        "restart",
        "What follows a failure of the engine: it is started again, up to 5 times in a row; then, or with `exit`, the "
        "server ends with code 3.",
    )
    step_seconds: Seconds = _fixed(300.0, "How long one step of the engine may take before it is taken for dead.")
    default_max_tokens: Count = Field(default=1024, description="Length of an answer whose request does not say.")
    request_seconds: Seconds = Field(
        default=600.0, description="How long a request may take in all; a client may ask for less with `Prefer: wait=`."
    )
    stall_seconds: Seconds = Field(default=30.0, description="How long a stream's reader may take nothing.")
    keep_alive_seconds: Seconds = Field(
        default=15.0, description="How long a stream may be silent before a comment is sent, or wait to begin."
    )
    body_seconds: Seconds = Field(default=60.0, description="How long a body may take to arrive.")
    body_stall_seconds: Seconds = Field(
        default=10.0, description="How long a body may take to arrive at less than `body_rate`."
    )
    body_rate: Count = Field(default=1024, description="Bytes of a body that must arrive each second, on average.")

    # input limits
    max_body_bytes: Count = Field(default=32 * MEBI, description="Size of a request's body.")
    body_memory_mib: Count | None = _fixed(
        None,
        "Memory for bodies that arrive or wait to be prepared, at least twice max_body_bytes; one key has half of it. "
        "If not given a 32nd of the memory, at most 1024.",
    )
    max_json_values: Count = Field(
        default=200_000,
        description="Commas and opening brackets of a request's body, texts included; counted before it is parsed.",
    )
    max_json_containers: Count = Field(default=20_000, description="Arrays and objects of a request's body.")
    max_prompt_characters: Count = Field(default=MEBI, description="Characters of all messages together.")
    optional_tools: Literal["ignore", "refuse"] = Field(
        default="ignore",
        description="What becomes of tools that the model may call or not, where its chat template does not show how "
        "it writes calls: a plain answer that names them in `x-autosteer-ignored`, or 400. A call that the request "
        "insists on is always made.",
    )
    max_images: Count = Field(default=16, description="Images of a request.")
    max_image_bytes: Count = _fixed(10 * MEBI, "Size of an image's file.")
    max_image_pixels: Count = _fixed(24_000_000, "Pixels of an image.")
    max_request_pixels: Count = _fixed(48_000_000, "Pixels of all images of a request together.")
    decode_seconds: Seconds = _fixed(20.0, "How long the images of a request may take to decode, one after another.")
    decode_memory_mib: Count | None = _fixed(
        None,
        "Memory for the images of all requests while they are decoded; who finds no room waits. If not given what one "
        "request at its limits takes.",
    )
    schema_string_characters: Annotated[int, Field(ge=0)] = _fixed(
        4096,
        "Longest string where a JSON schema bounds none; objects have the properties listed. 0: as it is written.",
    )
    schema_seconds: Seconds = _fixed(2.0, "CPU time that compiling a JSON schema may take.")
    schema_mib: Count = _fixed(128, "Memory that compiling a JSON schema may take.")
    schemas_mib: Count = _fixed(512, "Memory that the JSON schemas of all live requests together may take.")
    media: MediaSettings = _fixed(MediaSettings(), "Images by URL.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  as the base class has it
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given: `load_settings` joins the sources, and knows which said what."""
        return (init_settings,)

    @model_validator(mode="after")
    def _keys_and_policies(self) -> Self:
        check_policies(self.policies)
        check_keys(self.keys, self.policies)
        return self

    @model_validator(mode="after")
    def _who_may_enter_the_console(self) -> Self:
        if self.console and not self.serves_console:
            raise PydanticCustomError(
                "console",
                "console: nobody may enter it; it needs a key with `scope: console`, or no keys and a loopback address",
            )
        return self

    @model_validator(mode="after")
    def _only_of_one_engine(self) -> Self:
        given = {"quantize": self.quantize != "none", "shadow": self.shadow is not None}
        given["max_gap_ms"] = "max_gap_ms" in self.model_fields_set
        if self.engine == "vllm" and (field := next((name for name, is_given in given.items() if is_given), None)):
            raise PydanticCustomError("engine", "{field}: the vllm engine has no such thing", {"field": field})
        if self.engine == "own" and self.tensor_parallel > 1:
            raise PydanticCustomError("engine", "tensor_parallel: our own engine is one process; set engine: vllm")
        return self

    @model_validator(mode="after")
    def _room_for_bodies(self) -> Self:
        if self.body_memory_mib is not None and self.body_memory_mib * MEBI < 2 * self.max_body_bytes:
            raise PydanticCustomError(
                "body_memory",
                "body_memory_mib: a key has half of it, so the largest body (max_body_bytes) would never have room; it "
                "must be twice as much",
            )
        return self

    @model_validator(mode="after")
    def _room_for_images(self) -> Self:
        if self.decode_memory_mib is not None and self.decode_memory_bytes < self._images_of_one:
            raise PydanticCustomError(
                "decode_memory",
                "decode_memory_mib: one request may have images that take {needed} (max_request_pixels, "
                "max_image_pixels); it must be as much",
                {"needed": -(-self._images_of_one // MEBI)},
            )
        return self

    @property
    def decode_memory_bytes(self) -> int:
        """Memory for the images of all requests while they are decoded."""
        return self._images_of_one if self.decode_memory_mib is None else self.decode_memory_mib * MEBI

    @property
    def _images_of_one(self) -> int:
        """Memory for the images of one request, as large as they may be, while they are decoded."""
        return decode_bytes(self.max_request_pixels, min(self.max_image_pixels, self.max_request_pixels))

    @property
    def accepted_keys(self) -> tuple[KeySettings, ...]:
        """The keys that are not revoked."""
        return tuple(key for key in self.keys if key.name not in self.revoked_keys)

    @property
    def serves_console(self) -> bool:
        """Whether there is the console: never where whoever reaches the server could enter it from elsewhere."""
        opened = any(key.scope == "console" for key in self.accepted_keys)
        return self.console is not False and (opened or (not self.keys and is_loopback(self.host)))

    @property
    def max_live(self) -> int:
        """Requests that may run or wait at the same time."""
        return self.max_rows + self.max_queue

    @property
    def shared_live(self) -> int:
        """How many of them one key may have whose policy does not say: of several, none alone takes all."""
        return max(1, self.max_live // 2) if len(self.accepted_keys) > 1 else self.max_live

    def policy(self, name: str) -> PolicySettings:
        """A policy with what it leaves out taken from the top level."""
        default = {field: getattr(self, field) for field in PolicySettings.model_fields}
        if name == DEFAULT_POLICY:
            return PolicySettings(**default)
        own = self.policies[name].model_dump(exclude_unset=True)
        if "threshold" in own or "target_fpr" in own:
            default |= {"threshold": None, "target_fpr": None}
        if isinstance(own.get("output"), dict) and self.output is not None:
            own["output"] = joined_output(self.output.model_dump(exclude_unset=True), own["output"])
        return PolicySettings(**{**default, **own})

    @property
    def policy_names(self) -> tuple[str, ...]:
        """Every policy that there is."""
        return (DEFAULT_POLICY, *self.policies)
