"""Long lists of parameters, of which the fast suite tests some."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def thinned(values: Iterable[Any], every: int = 3, ids: Callable[[Any], str] | None = None) -> list:
    """As parameters, tuples for several names: the first and each `every`-th after it are fast, the others slow."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=[pytest.mark.slow] if number % every else [],
            id=ids(value) if ids else None,
        )
        for number, value in enumerate(values)
    ]
