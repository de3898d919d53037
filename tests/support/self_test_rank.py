"""One rank of a start-up self-test in a process of its own, for `test_self_test.py`.

Run by `runpy` with globals: `environment` as torchrun sets it, `url` of the storage, `fault`, what
is wrong with this rank's device, and `said`, where the outcome goes.
"""

from __future__ import annotations

import logging
import os
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

environment: dict[str, str] = globals()["environment"]
url: str = globals()["url"]
fault: str | None = globals()["fault"]
said: Connection = globals()["said"]
os.environ.update(environment)

from daybreak_trainer.checkpoint.storage import Storage, StorageError  # noqa: E402
from daybreak_trainer.health import self_test  # noqa: E402
from daybreak_trainer.parallel.process_group import joined  # noqa: E402

multiply = torch.Tensor.__matmul__


def one_wrong_value(left: Tensor, right: Tensor) -> Tensor:
    """As a device with one bad lane computes."""
    product = multiply(left, right)
    if left.dtype == torch.float32 and product.shape[0] > 200:
        product[201, 77] += 100
    return product


def refuses(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("device-side assert triggered\nmore lines")


if fault == "wrong":
    torch.Tensor.__matmul__ = one_wrong_value  # type: ignore[method-assign,assignment]
elif fault == "refuses":
    torch.mm = refuses

events: list[str] = []
heard = logging.Handler()
heard.emit = lambda record: events.append(record.getMessage())  # type: ignore[method-assign]
logging.getLogger("daybreak").addHandler(heard)
logging.getLogger("daybreak").setLevel(logging.INFO)
with joined() as rank:
    try:
        results = self_test.run(rank, 7, Storage(url), self_test.CPU_SIZES)
        said.send((results, events))
    except (self_test.SelfTestError, StorageError) as error:
        said.send((f"{type(error).__name__}: {error}", events))
os._exit(0)
