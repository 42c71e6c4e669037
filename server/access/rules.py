"""What may change while the server runs, as one frozen object: a request keeps the one that it began with."""

from __future__ import annotations

from dataclasses import dataclass

from server.access.keys import Clients
from server.access.loosening import check_loosening
from server.access.policies import make_policies
from server.settings.fixed import fixed_fields
from server.settings.schema import Settings
from steering.policy import Calibrated


@dataclass(frozen=True)
class Rules:
    """The settings in effect, and who may ask under them."""

    settings: Settings
    clients: Clients

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """The rules that settings stand for."""
        return cls(settings, Clients(settings))

    def changed(self, settings: Settings, guard: Calibrated | None) -> tuple[Rules, list[str]]:
        """The rules for new settings, and which of them stay as they were until a new start.

        Raises PolicyError, or LooseningError where they would take away what they do not name.
        """
        fixed = {name: getattr(self.settings, name) for name in fixed_fields()}
        kept = [name for name, value in fixed.items() if getattr(settings, name) != value]
        new = settings.model_copy(update=fixed)
        make_policies(new, guard)
        check_loosening(self.settings, new, guard)
        return Rules.of(new), kept
