"""Provide the cascade that most of these tests sample."""

import pytest
from cascades import cascade

from imagen.cascade import Cascade


@pytest.fixture(scope="module")
def small_cascade() -> Cascade:
    """Return a cascade of a base stage and a super-resolution stage with random weights."""
    return cascade()
