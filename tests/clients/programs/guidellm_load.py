"""guidellm: a load of synthetic prompts on each API, with its `ignore_eos` and usage in every chunk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import tasks

REQUESTS = 8


def loaded(path: str) -> str:
    report = Path("guidellm.json").resolve()
    report.unlink(missing_ok=True)
    backend = {"kind": "openai_http", "target": tasks.URL, "model": tasks.MODEL, "request_format": path}
    command = [
        str(Path(sys.executable).with_name("guidellm")), "run", "--backend", json.dumps(backend),
        "--tokenizer", f"kind=huggingface_auto,model={os.environ['CLIENT_CHECKPOINT']}",
        "--profile", "kind=synchronous", "--constraint", f"kind=max_requests,count={REQUESTS}",
        "--data", "kind=synthetic_text,prompt_tokens=16,output_tokens=8",
        "--output", f"kind=json,path={report}", "--disable-console-interactive",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    tasks.expect(report.exists(), (done.stdout + done.stderr)[-400:])
    totals = json.loads(report.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    tasks.expect(totals["successful"] == REQUESTS and not totals["errored"], totals)
    return f"{totals['successful']} of {REQUESTS} requests"


def chat() -> str:
    return loaded("/v1/chat/completions")


def completions() -> str:
    return loaded("/v1/completions")


def responses() -> str:
    return loaded("/v1/responses")


tasks.run(chat, completions, responses)
