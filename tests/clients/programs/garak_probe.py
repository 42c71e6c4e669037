"""garak: one of its probes over the openai-compatible generator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import tasks


def probe() -> str:
    options, found = Path("options.json").resolve(), Path("found").resolve()
    named = {"uri": f"{tasks.URL}/v1/", "api_key": "none", "max_tokens": 16}
    options.write_text(json.dumps({"openai": {"OpenAICompatible": named}}))
    command = [
        sys.executable, "-m", "garak", "--target_type", "openai.OpenAICompatible", "--target_name", tasks.MODEL,
        "--generator_option_file", str(options), "--probes", "test.Test", "--generations", "1",
        "--report_prefix", str(found),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    tasks.expect(done.returncode == 0 and "garak run complete" in done.stdout, (done.stdout + done.stderr)[-400:])
    entries = [json.loads(line) for line in found.with_name("found.report.jsonl").read_text().splitlines()]
    [told] = [entry for entry in entries if entry["entry_type"] == "eval"]
    tasks.expect(told["total_processed"] and not told["nones"], told)
    return f"test.Test: {told['total_processed']} of {told['total_processed']} prompts answered"


tasks.run(probe)
