"""What tests of whole processes share: one process that imports torch for all of them."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

import pytest


@pytest.fixture(scope="session")
def fork_server() -> ForkServerContext:
    """Starts processes that find everything a worker needs imported, as a pod's ranks do: 15 s of
    CPU time, once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "torch._dynamo",  # torch imports it as soon as it logs
            "diffusers.pipelines.prx.pipeline_prx_pixel",
            "transformers.models.t5.modeling_t5",
            "streaming.base.format",
            "daybreak_trainer.pod",
            "daybreak_trainer.rank_main",
        ]
    )
    return context
