"""What a manifest may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from daybreak_trainer.export.names import inside


def test_names_stay_in_their_folder(tmp_path: Path) -> None:
    """Neither an absolute one nor one that climbs; one that climbs back is where it says."""
    assert inside(tmp_path, "text/config.json") == tmp_path / "text" / "config.json"
    for name in ("../x", "text/../../x", "/x", "", "text/.."):
        with pytest.raises(ValueError, match="outside"):
            inside(tmp_path, name)
