"""What all tests on the control plane may use."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def seed() -> int:
    """Chooses where a test strikes: another place each time, the same with DAYBREAK_TEST_SEED."""
    chosen = int(os.environ.get("DAYBREAK_TEST_SEED") or int.from_bytes(os.urandom(4)))
    print(f"DAYBREAK_TEST_SEED={chosen}")
    return chosen
