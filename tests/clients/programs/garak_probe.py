"""garak: one of its probes over the openai-compatible generator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import tasks


def probe() -> str:
    options = Path("options.json").resolve()
    named = {"uri": f"{tasks.URL}/v1/", "api_key": "none", "max_tokens": 16}
    options.write_text(json.dumps({"openai": {"OpenAICompatible": named}}))
    command = [
        sys.executable, "-m", "garak", "--target_type", "openai.OpenAICompatible", "--target_name", tasks.MODEL,
        "--generator_option_file", str(options), "--probes", "test.Test", "--generations", "1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    tasks.expect(done.returncode == 0 and "garak run complete" in done.stdout, (done.stdout + done.stderr)[-400:])
    return "probe test.Test"


tasks.run(probe)
