"""The groups of settings: a policy, a key, the audit log, the shadow, images from elsewhere. Each validated, frozen."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from server.settings.units import MEBI
from server.settings.values import (
    AUDIT_SCHEMES,
    DEFAULT_POLICY,
    Count,
    Domain,
    Language,
    Name,
    Scope,
    Seconds,
    Share,
    Word,
)
from steering.policy import Mode


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


RefusalText = Annotated[str, Field(min_length=1, max_length=2000)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class OutputSettings(_Frozen):
    """How answers are watched while they are generated; needs a guard bundle that reads answers."""

    mode: Mode | None = Field(
        default=None,
        description="`off` (a steered answer is shown as it comes), `monitor`, `steer` (a flagged answer goes on as a "
        "refusal) or `block` (it ends with the policy's refusal text); the policy's own mode where not given.",
    )
    threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Score from which an answer is flagged, 0 to 1; the bundle's where neither is given."
    )
    target_fpr: Share | None = Field(
        default=None,
        description="Instead of a threshold: the rate of false alarms per answer, one that the bundle has.",
    )
    hold: Annotated[int, Field(ge=0, le=4096)] | Literal["sentence", "all"] | None = Field(
        default=None,
        description="How much of an answer is held back until it is cleared: so many tokens, until its `sentence` "
        "ends, or `all` of it; 16 in the modes `steer` and `block`, else 0.",
    )
    certain: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="In mode `steer`: score from which a flagged answer ends with the policy's refusal text; none if "
        "not given.",
    )

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if self.threshold is not None and self.target_fpr is not None:
            raise PydanticCustomError("threshold", "threshold and target_fpr exclude each other; give one of them")
        return self


class CategorySettings(_Frozen):
    """What is done with a flagged request by its category; needs a guard bundle that has categories.

    A category that is in no list, and a request of no category, have the policy's mode; of several the strictest holds.
    """

    block: tuple[Word, ...] = Field(default=(), description="Categories of the bundle that are blocked.")
    steer: tuple[Word, ...] = Field(default=(), description="Categories that are steered.")
    monitor: tuple[Word, ...] = Field(default=(), description="Categories that are counted, and answered unchanged.")

    @model_validator(mode="after")
    def _once(self) -> Self:
        listed = [name for name, _ in self.modes]
        if twice := sorted({name for name in listed if listed.count(name) > 1}):
            raise PydanticCustomError("categories", "{names}: in more than one list", {"names": ", ".join(twice)})
        return self

    @property
    def modes(self) -> list[tuple[str, Mode]]:
        """Each category that is named, and its mode."""
        lists = {Mode.BLOCK: self.block, Mode.STEER: self.steer, Mode.MONITOR: self.monitor}
        return [(name, mode) for mode, names in lists.items() for name in names]


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
    refusal: RefusalText | None = Field(
        default=None, description="What a blocked request is told; the bundle's where not given."
    )
    refusals: dict[Language, RefusalText] = Field(
        default={},
        description="The same in other languages, such as `de: ...`, by the script of what was asked and the client's "
        "`Accept-Language`.",
    )
    output: OutputSettings | None = Field(
        default=None, description="How answers are watched; as the policy's mode says where the bundle reads answers."
    )
    categories: CategorySettings | None = Field(
        default=None, description="What is done with a flagged request by its category, instead of `mode`."
    )
    expose_scores: bool = Field(default=False, description="Show verdict and score in every answer.")
    token_scores: bool = Field(
        default=False, description="Whether a request may ask for the score at each token of its prompt."
    )
    may_loosen: bool = Field(default=False, description="Whether a request may loosen its policy.")
    assistant_last: bool = Field(
        default=True,
        description="Whether the last message of a chat may be the assistant's, as of an answer that the client began.",
    )
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
    concurrent_requests: Count | None = Field(
        default=None,
        description="Generations of one key at the same time, each from its whole request to the end of its answer; if "
        "not given half of `max_rows` and `max_queue` together where there are several keys, else all.",
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
    scope: Scope = Field(
        default="api", description="What it opens: the `api`, or the `console` and `/admin`, and nothing else."
    )


class NoKeys(tuple[KeySettings, ...]):
    """`keys: none`: that there are none is meant. An empty list may be what is left of a file."""

    __slots__ = ()


def read_keys(value: object, validate: ValidatorFunctionWrapHandler) -> tuple[KeySettings, ...]:
    """The keys of a file: a list, or `none`; an empty list is not said to be meant."""
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
    answer_threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="Score from which it would flag an answer, 0 to 1; that of its own bundle where not given.",
    )

    @model_validator(mode="after")
    def _differs(self) -> Self:
        given = [name for name in ("threshold", "target_fpr") if getattr(self, name) is not None]
        if len(given) == 2:
            raise PydanticCustomError("threshold", "threshold and target_fpr exclude each other; give one of them")
        if not given and self.guard is None and self.answer_threshold is None:
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


def is_one_value(field: FieldInfo) -> bool:
    """Whether a setting is one value, as an option of the command line gives it."""
    return nested_model(field) is None and get_origin(field.annotation) is not dict


def joined_output(default: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What a policy says of answers, with what it leaves out as in the policy `default`."""
    limits = {"threshold", "target_fpr"}
    kept = {name: value for name, value in default.items() if name not in limits or limits.isdisjoint(own)}
    return {**kept, **own}


def nested_model(field: FieldInfo) -> type[BaseModel] | None:
    """The model that a setting holds, or holds several of; None for a single value."""
    found: list[object] = [field.annotation]
    while found:
        each = found.pop()
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
        found += get_args(each)
    return None
