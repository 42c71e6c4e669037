"""A pytest plugin, `-p tests.vllm.v2_runner`: vLLM computes by its V2 runner, which is refused outside of tests.

Its kernels are Triton's. vLLM runs them on a CPU where Triton has a back end for it, which that of PyPI has not;
Triton's interpreter runs them as well, slowly. Imported before vLLM is. One process: ranks of their own know nothing
of this.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"

import triton.backends

from server.engine.vllm import start

# All that vLLM asks of the back end.
triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))
start.V2_RUNNER = True
