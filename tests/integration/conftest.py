"""What several integration tests need: a hub of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_cast import HubProcess


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    """A real `zk0-hub serve`, new, killed at the end."""
    with HubProcess(tmp_path / "hub") as made:
        yield made
