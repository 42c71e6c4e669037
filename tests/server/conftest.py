"""The small internet that images are fetched from."""

import pytest
import trustme

from tests.server.web import World


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Who signs its certificates."""
    return trustme.CA()


@pytest.fixture
def world(authority: trustme.CA) -> World:
    """One with nothing asked of it yet."""
    return World(authority)
