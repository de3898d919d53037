"""Ranks of one node are forked together and go on together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daybreak_trainer.rank_processes import RankProcesses


def test_no_rank_goes_on_before_all_are_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the launcher serves nobody, so no lock of its threads is held across a fork; what
    they go on with is what was known only afterwards."""

    def rank_main() -> int:
        (tmp_path / os.environ["LOCAL_RANK"]).write_text(os.environ["MASTER_PORT"])
        return 0

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    names = ["0", "1", "2"]
    ranks = RankProcesses(rank_main, [{"LOCAL_RANK": name} for name in names], 0, tmp_path)
    ranks.wait(0.2)
    assert not [name for name in names if (tmp_path / name).exists()]
    assert ranks.are_running
    ranks.release({"MASTER_PORT": "29400"})
    while ranks.are_running:
        ranks.wait(10.0)
    assert [ended.code for ended in ranks.exits] == [0, 0, 0]
    assert {(tmp_path / name).read_text() for name in names} == {"29400"}
