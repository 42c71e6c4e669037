"""What a bundle's manifest says of each of its parts. Holds no torch."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Rate = Annotated[float, Field(ge=0, le=1)]
UNSAFE = "unsafe"  # what the guard's own score is of
NO_CATEGORY = "(none)"  # the category of what has none


class Frozen(BaseModel):
    """A part of a manifest: it never changes, and has no field that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerFigures(Frozen):
    """What validation says of one layer."""

    layer: int = Field(ge=0)
    sas: float
    auroc: Rate
    sas_low: float | None = None  # 95 % bootstrap interval
    sas_high: float | None = None
    accuracy: Rate | None = None  # balanced, at even odds


class Threshold(Frozen):
    """A threshold for a target false-positive rate, from `samples` held-out safe scores (split conformal)."""

    target_fpr: Rate
    threshold: Rate
    samples: int = Field(ge=0)


class CellSpec(Frozen):
    """Prompts that were calibrated together, and how many harmless ones.

    `told`: those in which a tool or a system message tells something; `answered`: those in which an answer stands, past
    or begun.
    """

    has_image: bool
    most_tokens: int | None  # None: any number
    samples: int = Field(ge=0)
    told: bool = False
    answered: bool | None = None  # None: with and without

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what older formats do not have, so that a bundle's id stays what it was."""
        data: dict[str, Any] = serialize(self)
        if not self.told:
            del data["told"]
        if self.answered is None:
            del data["answered"]
        return data


class ConversationSpec(Frozen):
    """How a whole conversation is read: every turn's end, and windows of tokens."""

    window: int = Field(gt=0)
    cells: list[CellSpec] = Field(min_length=1)
    together: bool = False  # all numbers of a prompt count, and not the most unusual one alone
    spoken: bool = False  # windows of what the template says by itself do not count, and of others the more unusual
    level: Rate = 0.0  # the share of the mean of a long prompt's windows that is taken off the highest

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what older formats do not have, so that a bundle's id stays what it was."""
        data: dict[str, Any] = serialize(self)
        if not self.together:
            del data["together"]
        if not self.spoken:
            del data["spoken"]
        if not self.level:
            del data["level"]
        return data

    @property
    def apart(self) -> bool:
        """Whether what tools and system messages tell is measured by itself."""
        return any(cell.told for cell in self.cells)

    @property
    def of_format_5(self) -> bool:
        """Whether something is said that only format 5 has."""
        return self.together or self.apart or any(cell.answered is not None for cell in self.cells)

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        """Each kind of prompt ends with a cell that takes any length, and there are some in which nothing is told."""
        kinds = [(cell.has_image, cell.told, cell.answered) for cell in self.cells]
        for kind in dict.fromkeys(kinds):
            lengths = [cell.most_tokens for cell, own in zip(self.cells, kinds, strict=True) if own == kind]
            *bounded, last = lengths
            if last is not None or None in bounded or bounded != sorted(set(map(int, filter(None, bounded)))):
                of = f"{'with' if kind[0] else 'without'} images{' of told prompts' if kind[1] else ''}"
                raise ValueError(f"cells {of} have lengths {lengths}, not rising ones")
        if all(cell.told for cell in self.cells):
            raise ValueError("all cells are of told prompts")
        return self


class AnswersSpec(Frozen):
    """How answers are read, and from which final score of one on it is harmful.

    Thresholds are for rates of false alarms per whole answer.
    """

    layers: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)  # read side by side
    window: int = Field(gt=0)
    thresholds: list[Threshold]
    threshold: Rate  # the default one
    figures: dict[str, float] = {}


class CategorySpec(Frozen):
    """A category of harm: its name, the score from which a flagged prompt counts as of it, and how well it is told.

    Of `samples` fresh prompts of it: `auroc` against fresh harmful ones of all others, `recall` at its threshold.
    """

    name: str = Field(min_length=1, max_length=64)
    threshold: Rate
    auroc: Rate
    recall: Rate
    samples: int = Field(ge=0)


class CategoriesSpec(Frozen):
    """The categories of harm that are told apart; `other`: harm of none of them is told apart from them, too."""

    categories: list[CategorySpec] = Field(min_length=1, max_length=64)
    other: bool
    figures: dict[str, float] = {}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if len({UNSAFE, NO_CATEGORY, *self.names}) < len(self.names) + 2:
            others = f"other than {UNSAFE} and {NO_CATEGORY}"
            raise ValueError(f"categories {', '.join(self.names)}: each needs a name of its own, {others}")
        return self

    @property
    def names(self) -> list[str]:
        """The names of the categories, in order."""
        return [category.name for category in self.categories]

    @property
    def table(self) -> list[list[str]]:
        """How well each is told apart from the others, and from which score on it counts; the first row is the head."""
        head = ["category", "prompts", "AUROC", "threshold", "reached by its own"]
        rows = [
            [c.name, str(c.samples), f"{c.auroc:.4f}", f"{c.threshold:.4f}", f"{c.recall:.1%}"] for c in self.categories
        ]
        return [head, *rows]
