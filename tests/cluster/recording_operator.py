"""The operator, unchanged, with a record of its writes: `recording_operator.py FILE ARGUMENTS...`.

Each line of FILE is a writing request as it is sent: the machine's clock, the method, the path.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from kubernetes.aio.client.rest import RESTClientObject

import daybreak_operator.__main__ as operator

WRITING = ("POST", "PUT", "PATCH", "DELETE")


def main() -> None:
    file = Path(sys.argv.pop(1))
    request = RESTClientObject.request

    async def recorded(self: Any, method: str, url: str, *rest: Any, **more: Any) -> Any:
        if method in WRITING:
            with file.open("a") as record:
                record.write(f"{time.monotonic()} {method} {url.partition('/api')[2]}\n")
        return await request(self, method, url, *rest, **more)

    RESTClientObject.request = recorded
    operator.main()


if __name__ == "__main__":
    main()
