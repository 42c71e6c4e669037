"""What can be chosen of a fit. Holds no torch, so that a wrong choice is told at once."""

from __future__ import annotations

from typing import Literal

Select = Literal["sas", "sas-among-best", "auroc"]
SELECTS: dict[str, Select] = {"sas": "sas", "sas-among-best": "sas-among-best", "auroc": "auroc"}

OWN_WORDS = 320  # texts that the model says in a user's place, where no other number is chosen

Reader = Literal["conversation", "last"]  # turn ends and windows of a whole prompt; or its last token alone
READERS: dict[str, Reader] = {"conversation": "conversation", "last": "last"}

# By cross-entropy of refusals (the paper's), of which a sparing one counts what it does to harmless answers as well; or
# in closed form (steering/fitting/nullspace.py).
HeadKind = Literal["trained", "sparing", "nullspace"]
HEADS: dict[str, HeadKind] = {"trained": "trained", "sparing": "sparing", "nullspace": "nullspace"}
