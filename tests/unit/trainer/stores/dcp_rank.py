"""One rank that saves a sharded state to several stores; run by `test_s3_checkpoint`."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from daybreak_trainer.checkpoint import dcp
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.checkpoint.together import Together
from daybreak_trainer.parallel.process_group import Rank

given: dict[str, Any] = globals()["given"]
"""Set by `runpy`: `environment`, as torchrun would set it, and `stores`, URLs with options."""

os.environ.update(given["environment"])
torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
state = {
    "weight": distribute_tensor(torch.arange(4_200_000.0).reshape(6_000, 700), mesh, [Shard(0)]),
    "odd": distribute_tensor(torch.arange(7.0), mesh, [Shard(0)]),
    "step": torch.tensor(7),
}
for url, options in given["stores"]:
    storage = Storage(url, options)
    rank = Rank(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    dcp.save(state, storage, Together(rank, dist.group.WORLD, storage.moved, 60.0))
dist.barrier()
dist.destroy_process_group()
