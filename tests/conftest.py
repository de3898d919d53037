"""What every test may use: the fixtures `devcluster` and `namespace`, and those of
`bucket_fixtures`."""

from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["daybreak_devcluster.pytest_plugin", "bucket_fixtures"]

# How long an example takes is the machine's affair: whatever must not hang has a limit of its own.
settings.register_profile("any-pace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-pace")

_FAILED = pytest.StashKey[dict[Exception, str]]()
"""What went wrong in fixtures, and in which test's."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """A fixture that many tests share and that fails is one error, the first test's: the others are
    skipped, and not one error each."""
    try:
        return (yield)
    except Exception as error:
        first = item.config.stash.setdefault(_FAILED, {}).setdefault(error, item.nodeid)
        if first == item.nodeid:
            raise
        pytest.skip(f"what it shares with {first} could not be set up")
