"""lm-eval's multiple choice over `local-completions`: prompts as token ids, its default, and as texts."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import lm_eval
import tasks

COLOURS = ["red", "green", "blue", "yellow"]
DATA = Path("choices.jsonl").resolve()
TASK = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(DATA)}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def evaluated(**options: Any) -> str:
    rows = [
        {"question": f"The {colour} square is", "choices": COLOURS, "answer": place}
        for place, colour in enumerate(COLOURS)
    ]
    DATA.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": tasks.MODEL,
            "base_url": f"{tasks.URL}/v1/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": os.environ["CLIENT_CHECKPOINT"],
            "max_length": 512,
            "max_retries": 1,
            **options,
        },
        tasks=[TASK],
        batch_size=4,
        log_samples=True,
        bootstrap_iters=0,
    )
    numbers = [float(response[0][0]) for sample in found["samples"]["colours"] for response in sample["resps"]]
    tasks.expect(len(numbers) == 16 and all(map(math.isfinite, numbers)), numbers)
    return f"accuracy {found['results']['colours']['acc,none']:.2f} of 4 questions"


def token_ids() -> str:
    return evaluated(tokenized_requests=True)


def texts() -> str:
    return evaluated(tokenized_requests=False)


tasks.run(token_ids, texts)
