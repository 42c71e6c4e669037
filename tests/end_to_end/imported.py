"""What a server, its engine and `autosteer eval` import, for the process that `ForkedServer` forks."""
# ruff: noqa: F401

import os

from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
)
from transformers.models.auto import processing_auto, tokenization_auto

import models.demo.world
import models.load
import server.app
import server.cli.main
import server.engine.client
import server.engine.loop
import server.engine.own
import server.engine.process
import server.engine.shadow
import server.http.server
import server.reload
import steering.bundle
import steering.evaluation.evaluate
from tests.end_to_end.forked import renew_threads

os.register_at_fork(after_in_child=renew_threads)
