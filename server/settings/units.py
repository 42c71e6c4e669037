"""Units of figures. Apart from the settings, whose libraries some processes have no use for."""

from __future__ import annotations

MEBI = 2**20
