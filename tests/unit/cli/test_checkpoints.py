"""`daybreak checkpoints`: what a person or a script gets back from a storage."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gated_store
import pytest
from gated_store import Rule
from s3_server import S3Server
from typer.testing import CliRunner

from daybreak_cli.main import app
from daybreak_trainer.checkpoint import retention
from daybreak_trainer.checkpoint.layout import (
    COMMIT,
    FORMAT,
    Commit,
    CommitPoint,
    TrainState,
    run_folder,
)
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.stores.patience import Patience


def called(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["checkpoints", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def committed(root: Storage, uid: str, attempt: int, step: int) -> Storage:
    point = CommitPoint(attempt=attempt, step=step)
    folder = root.child(f"{run_folder(uid)}/{point.folder}")
    commit = Commit(
        format=FORMAT,
        uid=uid,
        attempt=attempt,
        recipe_hash="r",
        dataset_fingerprint="d",
        state=TrainState(step=step, samples=2 * step),
        world=1,
        time="2026-01-01T00:00:00Z",
        files={"shard": folder.write("shard", b"weights"), "other": folder.write("other", b"w")},
    )
    folder.write(COMMIT, commit.seal())
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    """Two runs; the first has four commits and a save that was killed."""
    root = Storage(str(tmp_path / "checkpoints"))
    for step in (10, 20, 30, 40):
        committed(root, "a", 1, step)
    root.write("run-a/attempt-0001/step-00000025/shard", b"half")
    committed(root, "b", 2, 5)
    return root


@pytest.fixture
def rules() -> Iterator[list[Rule]]:
    yield gated_store.RULES
    gated_store.RULES.clear()


def listed(*arguments: str) -> list[tuple[str, int, str, bool]]:
    code, out, _ = called("ls", "--json", *arguments)
    assert code == 0
    return [(e["run"], e["step"], e["state"], e["tip"]) for e in json.loads(out)]


def test_everything_is_listed(root: Storage) -> None:
    """Partial saves too, and each run's tip is marked."""
    assert listed(root.url) == [
        ("a", 10, "committed", False),
        ("a", 20, "committed", False),
        ("a", 25, "partial", False),
        ("a", 30, "committed", False),
        ("a", 40, "committed", True),
        ("b", 5, "committed", True),
    ]
    code, out, _ = called("ls", root.url)
    assert code == 0
    rows = {tuple(line.replace("│", " ").split()) for line in out.splitlines()}
    assert any(row[:6] == ("a", "1", "40", "committed", "8", "bytes") for row in rows)
    assert any(row == ("a", "1", "25", "partial", "4", "bytes") for row in rows)


@pytest.mark.parametrize(
    ("below", "steps"),
    [
        ("run-b", [5]),
        ("run-a/attempt-0001", [10, 20, 25, 30, 40]),
        ("run-a/attempt-0001/step-00000020/", [20]),
    ],
)
def test_a_url_from_the_status_narrows_it(root: Storage, below: str, steps: list[int]) -> None:
    """The URL of a run, an attempt or a checkpoint."""
    assert [step for _, step, _, _ in listed(f"{root.url}/{below}")] == steps


def test_good_checkpoints_verify(root: Storage) -> None:
    """Each is named; one that was never finished is no damage."""
    code, out, _ = called("verify", root.url)
    assert code == 0
    assert out.count(": good") == 5
    assert "step-00000025" not in out


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: f.write("shard", b"weighTs"), "file shard is damaged"),
        (lambda f: f.write("shard", b"we"), "file shard has 2 bytes instead of 7"),
        (lambda f: f.remove("shard"), "file shard is missing"),
        (lambda f: f.write(COMMIT, b"{}"), "its COMMIT.json is damaged"),
    ],
)
def test_damage_is_named(root: Storage, spoil: Callable[[Storage], object], sentence: str) -> None:
    """With the checkpoint and the file; the exit code is 1."""
    spoil(root.child("run-a/attempt-0001/step-00000020"))
    code, out, err = called("verify", root.url)
    assert code == 1
    where = out.splitlines().index(f"{root.url}/run-a/attempt-0001/step-00000020: damaged")
    assert sentence in out.splitlines()[where + 1]
    assert out.count(": good") == 4
    assert "1 of 6 checkpoints are damaged" in err


def test_a_run_may_tidy_up_meanwhile(root: Storage, rules: list[Rule]) -> None:
    """A checkpoint that goes while it is verified is no damage, and one that goes before it is
    listed is not there."""
    folder = "run-a/attempt-0001/step-00000020"
    run, point = root.child("run-a"), CommitPoint(attempt=1, step=20)
    rules.append(Rule("read", f"{folder}/shard", lambda: retention.remove(run, point)))
    code, out, _ = called("verify", f"gated://{root.root}")
    assert code == 0
    assert out.count(": good") == 4
    assert f"gated://{root.root}/{folder}: removed meanwhile" in out.splitlines()
    partial = CommitPoint(attempt=1, step=25)
    rules.append(Rule("read", partial.folder, lambda: retention.remove(run, partial)))
    assert [step for _, step, _, _ in listed(f"gated://{root.root}")] == [10, 30, 40, 5]
    assert rules[-1].times == 0


def test_files_may_go_while_they_are_listed(root: Storage) -> None:
    """One after the other, again and again: there is always a list."""
    point, over = CommitPoint(attempt=1, step=26), threading.Event()

    def come_and_go() -> None:
        run = root.child("run-a")
        while not over.is_set():
            for number in range(30):
                Path(run.path(point.folder)).mkdir(exist_ok=True)
                Path(run.path(f"{point.folder}/{number}")).write_bytes(b"x")
            retention.remove(run, point)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        end, others = time.monotonic() + 1.5, [10, 20, 25, 30, 40, 5]
        while time.monotonic() < end:
            assert [step for _, step, _, _ in listed(root.url) if step != 26] == others
            assert called("verify", root.url)[0] == 0
    finally:
        over.set()
        thread.join()


def test_pruning_says_first_and_removes_then(root: Storage) -> None:
    """A dry run removes nothing; without a word either way neither does the command. Of each run
    the newest stay, and it can be asked again."""
    before = listed(root.url)
    code, _, err = called("prune", root.url, "--keep", "2")
    assert code == 2
    assert "--dry-run" in err
    code, said, _ = called("prune", root.url, "--keep", "2", "--dry-run")
    assert code == 0
    assert listed(root.url) == before
    code, out, _ = called("prune", root.url, "--keep", "2", "--yes")
    assert code == 0
    assert out.replace("removed", "would remove").replace("freed", "would be freed") == said
    assert out.splitlines() == [
        f"removed {root.url}/run-a/attempt-0001/step-00000010",
        f"removed {root.url}/run-a/attempt-0001/step-00000020",
        f"removed {root.url}/run-a/attempt-0001/step-00000025",
        "20 bytes freed",
    ]
    assert [step for _, step, _, _ in listed(root.url)] == [30, 40, 5]
    assert called("prune", root.url, "--keep", "2", "--yes")[1] == "0 bytes freed\n"


def test_fewer_than_two_are_never_kept(root: Storage) -> None:
    """One may turn out to be damaged."""
    code, _, err = called("prune", root.url, "--keep", "1", "--yes")
    assert code == 2
    assert "--keep" in err
    assert len(listed(root.url)) == 6


def test_what_a_bucket_holds(s3: S3Server, tmp_path: Path) -> None:
    """Credentials are options, one by one or as the Secret's JSON; wrong ones are said."""
    options = s3.options()
    root = Storage(f"s3://{s3.new_bucket()}/folder", options)
    for step in (10, 20, 30):
        committed(root, "a", 1, step)
    (tmp_path / "options.json").write_text(json.dumps(options))
    given = ("--options-file", str(tmp_path / "options.json"))
    assert [step for _, step, _, _ in listed(root.url, *given)] == [10, 20, 30]
    assert called("verify", root.url, *given)[0] == 0
    assert called("prune", root.url, "--keep", "2", "--yes", *given)[0] == 0
    assert [step for _, step, _, _ in listed(root.url, *given)] == [20, 30]
    wrong = ("--option", "secret=wrong")
    code, _, err = called("ls", root.url, *given, *wrong)
    assert code != 0
    assert root.url in err.replace("\n", "")


def test_a_wrong_endpoint_is_said_soon() -> None:
    """A person waits: the command ends with what the store's client says while a trainer would
    still be patient."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    keys = ("key=a", "secret=b", f"endpoint_url={endpoint}")
    mark = time.monotonic()
    code, _, err = called(
        "ls", "s3://bucket/folder", *(word for key in keys for word in ("--option", key))
    )
    seconds = time.monotonic() - mark
    assert code == 1
    said = err.replace("\n", "")
    assert "s3://bucket/folder: cannot list" in said
    assert endpoint in said
    assert seconds < Patience().total_seconds


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nostore://bucket/x",), "nostore://bucket/x: not a storage URL"),
        (("{tmp}",), "there are no checkpoints: no folder run-<uid>"),
        (("{tmp}/run-a",), "there is no such checkpoint; `daybreak checkpoints ls {tmp}`"),
        (("{tmp}", "--option", "key"), "--option key: must be KEY=VALUE"),
        (("{tmp}", "--options-file", "{tmp}/none"), "--options-file {tmp}/none: "),
    ],
)
def test_a_wrong_call_is_said(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    """In one line, with exit code 2."""
    code, _, err = called("ls", *(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    assert code == 2
    assert sentence.replace("{tmp}", str(tmp_path)) in err.replace("\n", "")


def test_looking_needs_no_torch(root: Storage) -> None:
    """It takes seconds to import, and is not on every machine."""
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from daybreak_cli.main import app\n"
        f"assert CliRunner().invoke(app, ['checkpoints', 'ls', {root.url!r}]).exit_code == 0\n"
        "print([m for m in ('torch', 'diffusers', 'kubernetes') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
