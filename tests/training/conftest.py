from pathlib import Path

import pytest

from tests.training import runs


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return runs.write_text(tmp_path / "text.txt")
