"""The console's Teach: labels, the bundle made of them beside the one that acts, and what it would change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response
from typing_extensions import TypedDict

from server.api.openapi import documented
from server.console.door import Door
from server.console.reviews import Reviews
from server.engine.shadow import shadow_threshold
from server.errors import NotFound
from server.http.body import as_json
from server.review.export import FILES, Exported, Reason, exported, text_of
from server.review.store import Change, ReviewStore
from server.service import Service
from server.settings.groups import ShadowSettings
from server.settings.schema import Settings
from steering.errors import BundleError
from steering.held_out import Figures, HeldOut, HeldOutRow, load_held_out
from steering.manifest import Manifest, load_manifest
from steering.policy import PolicyError

LATELY = timedelta(days=7)
ERRORS = (401, 403, 404, 500, 503)
NOT_KEPT = {"cache-control": "no-store"}


class LabelsCard(TypedDict):
    """`labels`: how many of each; `fit` and `held_out`: rows that a fit has of them; `left_out`: why some give none."""

    labels: dict[str, int]
    fit: int
    held_out: int
    left_out: dict[str, int]


class SideCard(TypedDict):
    """A bundle on labels that were held out."""

    guard: str
    threshold: float
    harmful: int
    caught: int
    harmless: int
    false_alarms: int


class FlipCard(TypedDict):
    """A label that was held out and that two bundles judge differently; `text` is null where none is kept."""

    text: str | None
    harmful: bool
    old: float | None
    new: float | None
    flagged: bool


class ComparedCard(TypedDict):
    """A bundle beside the one that it follows; `fitted`: labels held out that one of them was fitted on after all."""

    old: SideCard
    new: SideCard
    fitted: int
    flips: list[FlipCard]


class ShadowCard(TypedDict):
    """What is tried; `guard` is null where it is the acting bundle, `problem` why its folder cannot be read."""

    name: str
    guard: str | None
    threshold: float | None
    compared: ComparedCard | None
    problem: str | None


class ChangeCard(TypedDict):
    flagged: bool
    by_shadow: bool
    count: int
    labels: dict[str, int]


class Teach(TypedDict):
    """The body of `/admin/teach`; `changes` are of the requests since `since` that the shadow judged."""

    labels: LabelsCard
    acting: ComparedCard | None
    shadow: ShadowCard | None
    since: str
    changes: list[ChangeCard]


def routes(service: Service, door: Door, reviews: Reviews) -> APIRouter:
    """The routes that the page Teach asks; all of them only read."""
    router = APIRouter()

    @router.get("/admin/teach", **documented(Teach, errors=ERRORS))
    async def teach(http: HttpRequest) -> Response:
        door.reader(http)
        served = service.require_served()
        acting = served.guard if isinstance(served.guard, Manifest) else None
        found = await reviews.ask(lambda kept: _teach(kept, service.settings, acting), long=True)
        return as_json(found, headers=NOT_KEPT)

    @router.get("/admin/labels/{name}", **documented(str, kind="application/jsonl", parameter="name", errors=ERRORS))
    async def file(http: HttpRequest) -> Response:
        door.reader(http)
        name = http.path_params["name"]
        if name not in FILES:
            raise NotFound(f"There are {', '.join(FILES)}.", param="name")
        data = await reviews.ask(lambda kept: exported(kept.labels()).data(name), long=True)
        headers = {**NOT_KEPT, "content-disposition": f'attachment; filename="{name}"'}
        return Response(data, headers=headers, media_type="application/jsonl")

    return router


def _teach(kept: ReviewStore, settings: Settings, acting: Manifest | None) -> Teach:
    kept.fill()
    labels = kept.labels()
    since = (datetime.now(UTC) - LATELY).isoformat()
    texts = {label["record_id"]: text_of(label["record"]) for label in labels}
    changes = [] if settings.shadow is None else kept.changes(settings.shadow.name, since)
    return {
        "labels": _labels_card(Counter(label["label"] for label in labels), exported(labels)),
        "acting": _acting_card(settings.guard, acting, texts),
        "shadow": None if settings.shadow is None else _shadow_card(settings.shadow, acting, texts),
        "since": since,
        "changes": [_change_card(change) for change in changes],
    }


def _labels_card(labels: Mapping[str, int], rows: Exported) -> LabelsCard:
    return {
        "labels": dict(labels), "fit": rows.fit, "held_out": rows.held_out, "left_out": dict(rows.left_out)
    }  # fmt: skip


def _acting_card(folder: str | None, acting: Manifest | None, texts: Mapping[str, str]) -> ComparedCard | None:
    try:
        return None if acting is None else _kept_beside(folder, acting, texts)
    except BundleError:
        return None  # it acts all the same


def _shadow_card(shadow: ShadowSettings, acting: Manifest | None, texts: Mapping[str, str]) -> ShadowCard:
    card: ShadowCard = {"name": shadow.name, "guard": None, "threshold": None, "compared": None, "problem": None}
    try:
        bundle = acting if shadow.guard is None else load_manifest(Path(shadow.guard))
        if bundle is not None:
            card["threshold"] = shadow_threshold(shadow, bundle)
            card["guard"] = None if shadow.guard is None else bundle.id
            card["compared"] = None if shadow.guard is None else _kept_beside(shadow.guard, bundle, texts)
    except (BundleError, PolicyError) as error:
        card["problem"] = str(error)
    return card


def _kept_beside(folder: str | None, bundle: Manifest, texts: Mapping[str, str]) -> ComparedCard | None:
    """What a bundle's folder says of labels that were held out, if it is of this bundle. Raises BundleError."""
    found = None if folder is None else load_held_out(Path(folder))
    if found is None or found.new.guard != bundle.id:
        return None
    old, new = found.figures
    return {
        "old": _side_card(found.old.guard, found.old.threshold, old),
        "new": _side_card(found.new.guard, found.new.threshold, new),
        "fitted": found.fitted,
        "flips": [_flip_card(found, row, texts.get(row.id)) for row in found.flips],
    }


def _side_card(guard: str, threshold: float, figures: Figures) -> SideCard:
    return {
        "guard": guard,
        "threshold": threshold,
        "harmful": figures.harmful,
        "caught": figures.caught,
        "harmless": figures.harmless,
        "false_alarms": figures.false_alarms,
    }


def _flip_card(found: HeldOut, row: HeldOutRow, text: str | None) -> FlipCard:
    shown = None if isinstance(text, Reason) else text
    return {
        "text": shown, "harmful": row.harmful, "old": row.old, "new": row.new, "flagged": found.flagged(row)[1]
    }  # fmt: skip


def _change_card(change: Change) -> ChangeCard:
    return {
        "flagged": change.flagged,
        "by_shadow": change.by_shadow,
        "count": change.count,
        "labels": dict(change.labels),
    }
