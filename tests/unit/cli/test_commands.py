"""The `daybreak` command: what a person or a script gets back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from daybreak_cli import demo, main
from daybreak_cli.main import app
from daybreak_devcluster.info import ClusterInfo

COMMANDS = ("up", "down", "prepare", "watch", "sample", "evaluate", "ema", "checkpoints")


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    return result.exit_code, " ".join(result.output.split())


def test_help_names_every_command() -> None:
    """`daybreak --help` is where a newcomer starts."""
    code, out = run("--help")
    assert code == 0
    assert [name for name in COMMANDS if name not in out] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    """`daybreak COMMAND --help` says what it does."""
    code, out = run(command, "--help")
    assert code == 0
    assert len(out) > 100


def test_help_needs_no_heavy_imports() -> None:
    """The command answers at once: torch, diffusers and kubernetes are imported when needed."""
    code = (
        "import sys, daybreak_cli.main\n"
        "print([m for m in ('torch', 'diffusers', 'kubernetes', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_what_is_to_be_copied_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    """Commands and paths of `daybreak up` and the demo, however narrow the terminal is."""
    far = Path("/far", "away" * 40)
    info = ClusterInfo(far, far / "kubeconfig", "", far / "bin", "v1", ("node-0",), 1, 2.0)
    main._say_how_to_reach(info)
    demo._say(f"look at {far}")
    first, *exports, last = capsys.readouterr().out.splitlines()
    assert "kubectl apply -k manifests/overlays/devcluster" in first
    assert exports == [f"export KUBECONFIG={far}/kubeconfig", f"export PATH={far}/bin:$PATH"]
    assert last == f"==> look at {far}"


def test_prepare_writes_a_dataset_and_overwrites_none(tmp_path: Path) -> None:
    """A second call with the same folder is refused: exit code 2 and what to do."""
    out = tmp_path / "digits"
    code, said = run("prepare", "digits", out, "--count", "12")
    assert code == 0
    assert "12 samples of 16 px" in said
    assert json.loads((out / "dataset.json").read_text())["samples"] == 12
    code, said = run("prepare", "digits", out)
    assert code == 2
    assert "exists already; choose another folder" in said


def test_the_version_is_one_line() -> None:
    """For a bug report."""
    code, said = run("--version")
    assert code == 0
    assert re.fullmatch(r"daybreak \S+, torch \S+, diffusers \S+", said)


def test_prepare_says_what_it_left_out(tmp_path: Path) -> None:
    """How many, some by name, and where all are; without the flag, that there is one."""
    source, out = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    for number in range(14):
        file = source / f"{number:02d}.png"
        file.write_bytes(b"no image")
        file.with_suffix(".txt").write_text("a")
    Image.new("RGB", (16, 16)).save(source / "13.png")
    code, said = run("prepare", source, out, "--resolution", "16")
    assert code == 2
    assert "00.png" in said
    assert "--skip-unreadable" in said
    code, said = run("prepare", source, out, "--resolution", "16", "--skip-unreadable")
    assert code == 0
    assert "1 samples of 16 px" in said
    assert "13 unreadable images were left out" in said
    assert "09.png" in said
    assert "10.png" not in said
    assert "and 3 more" in said
    assert len(json.loads((out / "skipped.json").read_text())) == 13


@pytest.mark.parametrize(("size", "most"), [("16KiB", 16384), ("8kB", 8000)])
def test_shards_are_as_large_as_asked_for(size: str, most: int, tmp_path: Path) -> None:
    """With a unit: none is larger, and they are nearly full."""
    arguments = ("prepare", "digits", tmp_path / "out", "--count", "40", "--shard-size")
    code, said = run(*arguments, size)
    assert code == 0, said
    first, *others = (file.stat().st_size for file in sorted((tmp_path / "out").glob("*.mds")))
    assert most // 2 < first <= most
    assert all(size <= most for size in others)


@pytest.mark.parametrize("size", ["much", "0", "8GB"])
def test_a_size_that_is_none_is_said(size: str, tmp_path: Path) -> None:
    """In one line, and nothing is written."""
    code, said = run("prepare", "digits", tmp_path / "out", "--shard-size", size)
    assert code == 2
    assert "--shard-size" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["nowhere", "/dev/null"])
def test_prepare_of_what_is_no_source_is_said(source: str, tmp_path: Path) -> None:
    """No traceback: one line that names the source."""
    code, said = run("prepare", source, tmp_path / "out", "--resolution", "16")
    assert code == 2
    assert source in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [("sample", "--prompt=a red circle"), ("evaluate", "digits")])
def test_what_is_no_model_is_said(command: tuple[str, str], tmp_path: Path) -> None:
    """A folder without a pipeline is refused by name."""
    name, argument = command
    code, said = run(name, tmp_path, argument)
    assert code == 2
    assert "is not an exported model: it has no model_index.json" in said


@pytest.mark.parametrize(
    ("name", "problem"), [("grid.jpeg.gz", "ends in .png"), ("no/grid.png", "there is no folder")]
)
@pytest.mark.parametrize(
    "command", [("sample", "--prompt=a", "--out"), ("evaluate", "digits", "--samples")]
)
def test_where_no_image_can_be_written_is_said_first(
    command: tuple[str, str, str], name: str, problem: str, tmp_path: Path
) -> None:
    """Before minutes of drawing, and by name."""
    verb, argument, option = command
    code, said = run(verb, tmp_path, argument, option, tmp_path / name)
    assert code == 2
    assert problem in said


@pytest.mark.parametrize("command", [("sample", "--prompt=a"), ("evaluate", "digits")])
@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--device", "gpu", "must be cpu, cuda or cuda:NUMBER"),
        ("--device", "mps", "must be cpu, cuda or cuda:NUMBER"),
        ("--device", "cuda:99", "PyTorch finds"),
        ("--seed", "99999999999999999999", "--seed"),
    ],
)
def test_a_device_or_seed_that_is_none_is_said(
    command: tuple[str, str], option: str, value: str, problem: str, tmp_path: Path
) -> None:
    """Before a model is opened."""
    verb, argument = command
    code, said = run(verb, tmp_path, argument, option, value)
    assert code == 2
    assert problem in said


def test_an_export_whose_recipe_is_none_is_said(tmp_path: Path) -> None:
    """Somebody else's pipeline may have a recipe.json of its own."""
    (tmp_path / "model_index.json").write_text("{}")
    for text in ("[]", "{}", '{"sampling": {"steps": 3}}'):
        (tmp_path / "recipe.json").write_text(text)
        code, said = run("sample", tmp_path, "--prompt", "a")
        assert code == 2
        assert "recipe.json: not a Daybreak export" in said


def test_watch_without_a_cluster_is_said(tmp_path: Path) -> None:
    """A kubeconfig that is none ends in one line, not in a traceback."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("{}")
    code, said = run("watch", "digits", "--kubeconfig", kubeconfig)
    assert code == 2
    assert "kubeconfig" in said


def test_down_without_a_cluster_is_fine(tmp_path: Path) -> None:
    """Scripts may call it to be sure."""
    code, said = run("down", "--state-dir", tmp_path / "none")
    assert code == 0
    assert "there was no cluster" in said


@pytest.mark.parametrize(
    ("source", "out"), [("digits", "s3://bucket/digits"), ("s3://bucket/photos", "here")]
)
def test_prepare_says_that_it_wants_local_folders(
    source: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL is refused before anything is read or written, with the way to copy the result."""
    monkeypatch.chdir(tmp_path)
    code, said = run("prepare", source, out)
    assert code != 0
    assert "aws s3 sync" in said
    assert list(tmp_path.iterdir()) == []
