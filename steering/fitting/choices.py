"""What the layer of a guard can be chosen by. Holds no torch, so that a wrong choice is told at once."""

from __future__ import annotations

from typing import Literal

Select = Literal["sas", "sas-among-best", "auroc"]
SELECTS: dict[str, Select] = {"sas": "sas", "sas-among-best": "sas-among-best", "auroc": "auroc"}
