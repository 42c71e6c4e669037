"""The server's settings: validated once, frozen. Read from `AUTOSTEER_...`, overridden by the command line."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.media import MediaLimits

Mode = Literal["off", "monitor", "steer", "block"]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]

MEBI = 2**20


class Settings(BaseSettings):
    """Everything that can be set. `model` None is the bundled demo model, `guard` None its guard."""

    model_config = SettingsConfigDict(env_prefix="AUTOSTEER_", frozen=True, extra="forbid")

    # what is served
    model: str | None = None
    guard: str | None = Field(default=None, description="bundle folder, or 'none'")
    served_model_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"

    # where
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000

    # policy
    mode: Mode | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    target_fpr: Share | None = None
    eps: Annotated[float, Field(allow_inf_nan=False)] | None = None
    refusal: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    expose_scores: bool = False

    # load
    max_rows: Count = 16
    max_queue: Annotated[int, Field(ge=0)] = 256
    prefill_tokens: Count = 4096
    default_max_tokens: Count = 1024
    drain_seconds: Seconds = 30.0
    stall_seconds: Seconds = 30.0
    body_seconds: Seconds = 60.0

    # input limits
    max_body_bytes: Count = 32 * MEBI
    max_prompt_characters: Count = MEBI
    max_images: Count = 16
    max_image_bytes: Count = 10 * MEBI
    max_image_pixels: Count = 24_000_000
    prepare_threads: Count = 2

    access_log: bool = False

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if self.threshold is not None and self.target_fpr is not None:
            raise ValueError("threshold and target-fpr exclude each other")
        return self

    @property
    def max_live(self) -> int:
        """Requests that may run or wait at the same time."""
        return self.max_rows + self.max_queue

    @property
    def media_limits(self) -> MediaLimits:
        """What one request may bring."""
        return MediaLimits(images=self.max_images, bytes=self.max_image_bytes, pixels=self.max_image_pixels)
