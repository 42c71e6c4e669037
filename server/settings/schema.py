"""The server's settings: validated once, frozen. `server.settings.sources` reads them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from steering.policy import Mode

DEFAULT_POLICY = "default"
AUDIT_SCHEMES = ("file", "sqlite", "postgresql")
MEBI = 2**20

LogFormat = Literal["json", "text"]

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
# A name as it is compared with a URL's host: lower case, no trailing dot; `*.` stands for one or more labels.
Domain = Annotated[
    str, Field(max_length=253, pattern=r"^(\*\.)?([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]$")
]
Endpoint = Annotated[str, Field(max_length=2000, pattern=r"^https?://[^\s@?#]+$")]
Word = Annotated[str, Field(min_length=1, max_length=200)]


def _fixed(default: object, description: str) -> Any:  # noqa: ANN401  as pydantic's own Field
    """A setting that cannot change while the server runs."""
    return Field(default, description=description, json_schema_extra={"fixed": True})


def _key_hash(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value.get_secret_value()):
        raise PydanticCustomError(
            "key_hash", "must be 'sha256:' and 64 hex digits, as `autosteer keys new` prints it; never the key itself"
        )
    return value


def _audit_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    scheme = url.partition(":")[0]
    if scheme not in AUDIT_SCHEMES:
        raise PydanticCustomError(
            "audit_url", "must begin with file:///, sqlite:/// or postgresql://, not {scheme}", {"scheme": scheme[:20]}
        )
    parts = urlsplit(url)
    if scheme == "file" and (parts.netloc or len(parts.path) < 2 or parts.query or parts.fragment):
        raise PydanticCustomError("audit_url", "must be file:/// and the absolute path of a file")
    if scheme == "sqlite" and (parts.netloc or len(parts.path) < 2):
        raise PydanticCustomError("audit_url", "must be sqlite:/// and the path of a file")
    return value


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class PolicySettings(_Frozen):
    """What a policy says; what a named one leaves out is as in the policy `default`, which the top level describes."""

    mode: Mode | None = Field(
        default=None, description="`off`, `monitor`, `steer` or `block`; `steer` where there is a guard."
    )
    threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Score from which a request is flagged, 0 to 1; the bundle's where neither is given."
    )
    target_fpr: Share | None = Field(
        default=None, description="Instead of a threshold: the false-positive rate aimed at, one that the bundle has."
    )
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Steering strength; the bundle's where not given."
    )
    refusal: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(
        default=None, description="What a blocked request is told; the bundle's where not given."
    )
    expose_scores: bool = Field(default=False, description="Show verdict and score in every answer.")
    may_loosen: bool = Field(default=False, description="Whether a request may loosen its policy.")
    completions: Literal["on", "text", "off"] | None = Field(
        default=None,
        description="What `/v1/completions` takes: texts and token ids (`on`), only texts (`text`) or nothing (`off`); "
        "`text` where there is a guard, else `on`.",
    )
    requests_per_minute: Count | None = Field(
        default=None, description="Requests of one key per minute; unlimited if not given."
    )
    tokens_per_minute: Count | None = Field(
        default=None, description="Prompt and answer tokens of one key per minute; unlimited if not given."
    )

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if self.threshold is not None and self.target_fpr is not None:
            raise PydanticCustomError("threshold", "threshold and target-fpr exclude each other; give one of them")
        return self


class KeySettings(_Frozen):
    """One API key. The key itself is nowhere: only its hash, and a name for logs and audit."""

    name: Name = Field(description="The key's name in the audit log.")
    hash: Annotated[SecretStr, AfterValidator(_key_hash)] = Field(
        description="`sha256:` and the hash, as `autosteer keys new` prints it."
    )
    policy: Name = Field(default=DEFAULT_POLICY, description="The policy that its requests are served under.")


class NoKeys(tuple[KeySettings, ...]):
    """`keys: none`: that there are none is meant. An empty list may be what is left of a file."""

    __slots__ = ()


def _keys(value: object, validate: ValidatorFunctionWrapHandler) -> tuple[KeySettings, ...]:
    if value == "none":
        return NoKeys()
    if not isinstance(value, (list, tuple)):
        raise PydanticCustomError("keys", "must be a list, or `none` where everybody is to be served without a key")
    found: tuple[KeySettings, ...] = validate(value)
    return found


class AuditSettings(_Frozen):
    """Where one record per request goes, and what happens if that fails."""

    url: Annotated[SecretStr, AfterValidator(_audit_url)] = Field(
        description="`file:///PATH` (JSON lines), `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/DATABASE`."
    )
    on_failure: Literal["serve", "refuse"] = Field(
        default="serve", description="While records cannot be written: go on serving, or `refuse` requests with 503."
    )
    content: bool = Field(default=False, description="Also keep the messages (images as hashes) and the answers.")
    max_bytes: Annotated[int, Field(ge=4096)] = Field(
        default=64 * MEBI, description="Size of a JSON lines file at which the next one is begun."
    )
    max_files: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=10, description="How many JSON lines files are kept; the oldest is deleted."
    )
    queue: Annotated[int, Field(ge=1)] = Field(default=10_000, description="Records that may wait to be written.")
    flush_seconds: Seconds = Field(
        default=10.0, description="How long the end of the server waits for the last records."
    )


class ShadowSettings(_Frozen):
    """What is evaluated on live traffic beside the acting guard, and changes no answer."""

    name: Name = Field(default="shadow", description="Its name in metrics and audit records.")
    guard: Word | None = Field(default=None, description="Guard bundle folder; the acting one where not given.")
    threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Score from which it would flag, 0 to 1; its bundle's where neither is given."
    )
    target_fpr: Share | None = Field(
        default=None, description="Instead of a threshold: the false-positive rate aimed at, one that its bundle has."
    )

    @model_validator(mode="after")
    def _differs(self) -> Self:
        given = [name for name in ("threshold", "target_fpr") if getattr(self, name) is not None]
        if len(given) == 2:
            raise PydanticCustomError("threshold", "threshold and target_fpr exclude each other; give one of them")
        if not given and self.guard is None:
            raise PydanticCustomError("threshold", "needs a guard, a threshold or a target_fpr of its own")
        return self


class MediaSettings(_Frozen):
    """Where images may be fetched from; nowhere by default. Their size is limited as that of all images is."""

    allowed_domains: tuple[Domain, ...] = Field(
        default=(), description="Domains to fetch from: `images.example.com`, or `*.example.com` for all below it."
    )
    allow_http: bool = Field(default=False, description="Also fetch `http` URLs.")
    redirects: Annotated[int, Field(ge=0, le=10)] = Field(
        default=3, description="Redirects that are followed, each checked like the first URL."
    )
    seconds: Seconds = Field(default=10.0, description="How long one fetch may take in all.")
    fetches: Count = Field(default=16, description="Fetches at the same time.")
    fetches_per_host: Count = Field(default=8, description="Fetches from one host at the same time.")


class Settings(BaseSettings, PolicySettings):
    """Everything that can be set; the fields of the policy `default` are among them."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    # what is served
    model: str | None = _fixed(None, "Hub id or folder; the bundled demo model where not given.")
    guard: str | None = _fixed(
        None, "Guard bundle folder, or `none`; the demo model's guard for the demo model, none for another."
    )
    served_model_name: Word | None = _fixed(None, "The model's name in the API.")
    revision: str | None = _fixed(None, "Branch, tag or commit of a hub model.")
    device: str = _fixed("auto", "`auto`, `cpu`, `cuda`, `cuda:0`, ...")
    dtype: str = _fixed(
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
    keys: Annotated[tuple[KeySettings, ...], WrapValidator(_keys)] = Field(
        default=(), description="API keys; without any everybody is served as `anonymous`, which `none` spells out."
    )
    revoked_keys: tuple[Name, ...] = Field(
        default=(), description="Names of keys that are no longer accepted, whether `keys` still has them or not."
    )
    loosens: Annotated[str, Field(pattern=r"^change-[0-9a-f]{16}$")] | None = Field(
        default=None,
        description="The one change by which a reload may loosen what is in effect, as a refused one names it.",
    )
    metrics_key: bool = Field(default=False, description="Whether `/metrics` needs an API key too.")
    audit: AuditSettings | None = _fixed(None, "The audit log; none where not given.")

    shadow: ShadowSettings | None = _fixed(
        None, "A guard or threshold that is tried on live traffic; none if not given."
    )

    # load
    max_rows: Count = _fixed(16, "Requests generated at the same time.")
    max_queue: Annotated[int, Field(ge=0)] = _fixed(256, "Requests that may wait; more are answered with 429.")
    prefill_tokens: Count = _fixed(4096, "Prompt tokens computed in one step, at most; longer prompts take several.")
    prefill_slowdown: Annotated[float, Field(gt=1, allow_inf_nan=False)] = _fixed(
        2.0, "How many times as long as without prompts a step may take beside decoding rows; prompts wait for it."
    )
    cache_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = _fixed(
        None, "Memory of the KV cache; if not given what max_rows whole contexts take, within a share of the memory."
    )
    prefix_cache: bool = _fixed(True, "Keep what prompts begin with in the KV cache, for prompts that begin alike.")
    image_cache_mib: Annotated[int, Field(ge=0)] = _fixed(
        128, "Memory for images that were seen, by content, in each of the two processes; 0 for none."
    )
    threads: Count | None = _fixed(
        None, "Threads of the model on a CPU; if not given one for a small model, else one for each core."
    )
    quantize: Literal["none", "int8"] = _fixed("none", "Weights of the decoder's layers in 8 bits, on a CPU.")
    cuda_graphs: bool = _fixed(True, "Record steps as CUDA graphs at start, on a GPU.")
    prepare_threads: Count = _fixed(2, "Threads that decode images and render prompts.")
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

    # input limits
    max_body_bytes: Count = Field(default=32 * MEBI, description="Size of a request's body.")
    max_json_values: Count = Field(
        default=200_000,
        description="Commas and opening brackets of a request's body, texts included; counted before it is parsed.",
    )
    max_json_containers: Count = Field(default=20_000, description="Arrays and objects of a request's body.")
    max_prompt_characters: Count = Field(default=MEBI, description="Characters of all messages together.")
    max_images: Count = Field(default=16, description="Images of a request.")
    max_image_bytes: Count = _fixed(10 * MEBI, "Size of an image's file.")
    max_image_pixels: Count = _fixed(24_000_000, "Pixels of an image.")
    decode_seconds: Seconds = _fixed(20.0, "How long an image may take to decode.")
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
        if DEFAULT_POLICY in self.policies:
            raise PydanticCustomError(
                "policies", "policies.default: the policy 'default' is what the top level says; put its fields there"
            )
        for number, key in enumerate(self.keys):
            if key.policy != DEFAULT_POLICY and key.policy not in self.policies:
                known = ", ".join([DEFAULT_POLICY, *self.policies])
                raise PydanticCustomError(
                    "keys",
                    "keys.{number}.policy: there is no policy {policy}; there are {known}",
                    {"number": number, "policy": repr(key.policy), "known": known},
                )
        for field in ("name", "hash"):
            values = [getattr(key, field) for key in self.keys]
            for number, value in enumerate(values):
                if value in values[:number]:
                    raise PydanticCustomError(
                        "keys", f"keys.{number}.{field} is that of keys.{values.index(value)} too; each needs its own"
                    )
        return self

    @property
    def accepted_keys(self) -> tuple[KeySettings, ...]:
        """The keys that are not revoked."""
        return tuple(key for key in self.keys if key.name not in self.revoked_keys)

    @property
    def max_live(self) -> int:
        """Requests that may run or wait at the same time."""
        return self.max_rows + self.max_queue

    def policy(self, name: str) -> PolicySettings:
        """A policy with what it leaves out taken from the top level."""
        default = {field: getattr(self, field) for field in PolicySettings.model_fields}
        if name == DEFAULT_POLICY:
            return PolicySettings(**default)
        own = self.policies[name].model_dump(exclude_unset=True)
        if "threshold" in own or "target_fpr" in own:
            default |= {"threshold": None, "target_fpr": None}
        return PolicySettings(**{**default, **own})

    @property
    def policy_names(self) -> tuple[str, ...]:
        """Every policy that there is."""
        return (DEFAULT_POLICY, *self.policies)


def nested_model(field: FieldInfo) -> type[BaseModel] | None:
    """The model that a setting holds, or holds several of; None for a single value."""
    found: list[object] = [field.annotation]
    while found:
        each = found.pop()
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
        found += get_args(each)
    return None


def fixed_fields() -> tuple[str, ...]:
    """The settings that only a new start can change."""
    return tuple(name for name in Settings.model_fields if is_fixed(name))


def is_fixed(name: str) -> bool:
    """Whether only a new start can change this setting."""
    extra = Settings.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and extra.get("fixed") is True
