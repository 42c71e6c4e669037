"""guidellm: a load of synthetic chats and completions, with its `ignore_eos` and usage in every chunk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import tasks

REQUESTS = 8


def loaded(kind: str) -> str:
    report = Path(f"{kind}.json").resolve()
    report.unlink(missing_ok=True)
    command = [
        str(Path(sys.executable).with_name("guidellm")), "benchmark", "run", "--target", tasks.URL,
        "--model", tasks.MODEL, "--processor", os.environ["CLIENT_CHECKPOINT"], "--request-type", kind,
        "--profile", "synchronous", "--max-requests", str(REQUESTS), "--data", "prompt_tokens=16,output_tokens=8",
        "--output-path", str(report),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    tasks.expect(report.exists(), (done.stdout + done.stderr)[-400:])
    totals = json.loads(report.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    tasks.expect(totals["successful"] == REQUESTS and not totals["errored"], totals)
    return f"{totals['successful']} of {REQUESTS} requests"


def chat() -> str:
    return loaded("chat_completions")


def completions() -> str:
    return loaded("text_completions")


tasks.run(chat, completions)
