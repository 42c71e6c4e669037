"""The manifest of a guard bundle: all of it but its tensors. Holds no torch, so that it can be read in no time.

What binds a guard to its model is what the numbers depend on: architecture, width, depth, vocabulary, chat template,
and a fingerprint of the weights. The name is kept for people; a model may be served from another folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from steering.errors import BundleError
from steering.files import digest
from steering.policy import DEFAULT_HOLD, UNWATCHED, Hold, Mode, OutputPolicy, Policy
from steering.specs import AnswersSpec, CategoriesSpec, ConversationSpec, Frozen, LayerFigures, Rate, Threshold

if TYPE_CHECKING:
    from models.info import BackboneInfo

MANIFEST = "guard.json"
Format = Literal[1, 2, 3, 4, 5, 6, 7]


class ModelBinding(Frozen):
    """The model that a guard was fitted on."""

    name: str
    revision: str | None
    architecture: str
    hidden_size: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    dtype: str
    template_hash: str
    weights_hash: str

    @classmethod
    def of(cls, info: BackboneInfo) -> ModelBinding:
        """Describe a loaded model."""
        return cls(
            name=info.name,
            revision=info.revision,
            architecture=info.architecture,
            hidden_size=info.hidden_size,
            num_layers=info.num_layers,
            vocab_size=info.vocab_size,
            dtype=str(info.dtype).removeprefix("torch."),
            template_hash=info.template_hash,
            weights_hash=info.weights_hash,
        )

    def check(self, info: BackboneInfo) -> None:
        """Raise BundleError naming everything in which the loaded model differs."""
        loaded = self.of(info)
        binding = ("architecture", "hidden_size", "num_layers", "vocab_size", "template_hash", "weights_hash")
        wrong = [name for name in binding if getattr(self, name) != getattr(loaded, name)]
        if wrong:
            differences = ", ".join(f"{name} {getattr(self, name)} (loaded: {getattr(loaded, name)})" for name in wrong)
            raise BundleError(
                f"the guard was fitted on {self.name}, which differs from {info.name}: {differences}. "
                "Fit a guard for this model (autosteer fit), or serve the checkpoint that it was fitted on"
            )


class Manifest(Frozen):
    """Everything of a bundle but its tensors.

    Format 1 reads the last prompt token alone; format 2 has `conversation`; format 3 has `answers` beside either;
    format 4 has `categories` beside any of these; format 5 has cells in `conversation` of what tools and system
    messages tell, or of prompts with an answer in them, or takes the numbers of a prompt together; format 6 reads no
    windows of what a template says by itself, and of what is said and what is told the more unusual windows count;
    format 7 measures the highest windows of long prompts against the level of the others.
    """

    format_version: Format = 1
    model: ModelBinding
    layer: int = Field(ge=0)
    probe_layers: list[Annotated[int, Field(ge=0)]] = Field(
        default=[]
    )  # what the prober reads side by side; empty: `layer` alone
    probe_position: Literal["last_prompt_token", "conversation"] = "last_prompt_token"
    conversation: ConversationSpec | None = None
    answers: AnswersSpec | None = None
    categories: CategoriesSpec | None = None
    prober_hidden: int = Field(ge=0)  # 0: linear
    head_rank: int | None = Field(default=None, gt=0)
    layers: list[LayerFigures]
    thresholds: list[Threshold]
    threshold: Rate  # the default one
    eps: float = Field(gt=0, allow_inf_nan=False)
    refusal: str = Field(min_length=1)
    validation: dict[str, float]
    data_hash: str
    data_size: int = Field(ge=0)
    versions: dict[str, str]
    date: str
    tensors_hash: str

    @model_validator(mode="after")
    def _check_format(self) -> Self:
        whole = self.conversation is not None
        expected = format_of(self.conversation, self.answers, self.categories)
        if self.format_version != expected or whole != (self.probe_position == "conversation"):
            parts = {"conversation": self.conversation, "answers": self.answers, "categories": self.categories}
            found = {name: part is not None for name, part in parts.items()}
            named = " and ".join(f"{'with' if there else 'without'} {name}" for name, there in found.items())
            raise ValueError(f"format_version {self.format_version} at {self.probe_position} {named}")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what its format does not have, so that a bundle's id stays what it was."""
        data: dict[str, Any] = serialize(self)
        if self.format_version == 1:
            del data["conversation"]
        if self.format_version < 3:
            del data["answers"]
        if self.format_version < 4:
            del data["categories"]
        return data

    @property
    def readers(self) -> str:
        """What is read of a prompt, in words."""
        if self.conversation is None:
            return "last token"
        told = ", tools and system messages by themselves" if self.conversation.of_format_5 else ""
        return f"turn ends, windows of {self.conversation.window} tokens{told}"

    @property
    def inputs(self) -> int:
        """How many numbers of a token are read: its states at the layers that are read side by side."""
        return self.model.hidden_size * (len(self.probe_layers) or 1)

    @property
    def highest_layer(self) -> int:
        """The highest layer that any of its readers reads."""
        read: list[int] = [self.layer, *self.probe_layers]
        return max(read if self.answers is None else [*read, *self.answers.layers])

    @property
    def watches(self) -> bool:
        """Whether the bundle reads answers."""
        return self.answers is not None

    @property
    def category_names(self) -> Sequence[str]:
        """The categories of harm that the bundle tells apart."""
        return () if self.categories is None else self.categories.names

    @property
    def recall(self) -> float:
        """Share of fresh toxic prompts that its default threshold caught at the fit; 1 where that is not known."""
        return self.validation.get("tpr", 1.0)

    @property
    def id(self) -> str:
        """Tells this bundle from every other: 12 hex digits of a hash of all that it says, its tensors included."""
        return digest(self.model_dump_json().encode())[:12]

    def policy(
        self,
        name: str = "default",
        mode: Mode = Mode.STEER,
        *,
        threshold: float | None = None,
        target_fpr: float | None = None,
        eps: float | None = None,
        refusal: str | None = None,
        expose_scores: bool = False,
    ) -> Policy:
        """A policy with the bundle's threshold, eps and refusal text where none is given. Raises ValueError."""
        if threshold is not None and target_fpr is not None:
            raise ValueError(f"threshold {threshold} and target_fpr {target_fpr}: give one of them")
        if target_fpr is not None:
            threshold = self.threshold_for(target_fpr)
        return Policy(
            name=name,
            mode=mode,
            threshold=self.threshold if threshold is None else threshold,
            eps=self.eps if eps is None else eps,
            refusal=refusal or self.refusal,
            expose_scores=expose_scores,
        )

    def output(
        self,
        mode: Mode,
        *,
        threshold: float | None = None,
        target_fpr: float | None = None,
        hold: Hold | None = None,
        certain: float | None = None,
    ) -> OutputPolicy:
        """How answers are judged, with the bundle's threshold where none is given. Raises ValueError."""
        if mode is Mode.OFF:
            return UNWATCHED
        if self.answers is None:
            raise ValueError(
                f"output.mode {mode} needs a guard bundle that reads answers, and this one reads prompts alone"
            )
        if threshold is None:
            known = self.answers
            threshold = (
                known.threshold if target_fpr is None else _threshold_for(target_fpr, known.thresholds, "output.")
            )
        if hold is None:
            hold = 0 if mode is Mode.MONITOR else DEFAULT_HOLD
        return OutputPolicy(mode, threshold, hold, certain)

    def threshold_for(self, target_fpr: float) -> float:
        """The bundle's threshold for a target false-positive rate. Raises ValueError naming those it has."""
        return _threshold_for(target_fpr, self.thresholds)


def format_of(
    conversation: ConversationSpec | None, answers: AnswersSpec | None, categories: CategoriesSpec | None = None
) -> Format:
    """The format of a bundle with these readers: the lowest that has them."""
    if conversation is not None and conversation.level:
        return 7
    if conversation is not None and (conversation.spoken or conversation.of_format_5):
        return 6 if conversation.spoken else 5
    if categories is not None:
        return 4
    if answers is not None:
        return 3
    return 1 if conversation is None else 2


def _threshold_for(target_fpr: float, thresholds: Sequence[Threshold], of: str = "") -> float:
    for known in thresholds:
        if abs(known.target_fpr - target_fpr) < 1e-9:
            return known.threshold
    rates = ", ".join(f"{known.target_fpr:g}" for known in thresholds) or "none"
    raise ValueError(f"{of}target_fpr {target_fpr:g} is not calibrated in this bundle; it has {rates}")


def load_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest. Raises BundleError."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(read_part(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg']}, not {str(first['input'])[:80]!r}") from error


def read_part(path: Path) -> bytes:
    """The bytes of one of a bundle's files. Raises BundleError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read the guard bundle's {path}: {error.strerror}") from error
