"""`data.prepare`: pods that share the work make one dataset, the same however many they are, and go
on where one of them was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from samples import opened, read
from tiny_autoencoders import save_kl

from daybreak_trainer import contract
from daybreak_trainer.contract import ExitCode, PrepareSettings, StreamSettings, Termination
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.prepare.datasets import prepare_datasets
from daybreak_trainer.prepare.divided import cut
from daybreak_trainer.prepare.joined import PREPARED
from daybreak_trainer.prepare.pod import prepare_parts
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.prepare.texts import SAMPLES
from daybreak_trainer.prepare.unreadable import REPORT

COUNT = 600
"""In three parts of shapes."""


def told(out: Path | str, **changes: Any) -> PrepareSettings:
    given: dict[str, Any] = {
        "name": "run",
        "namespace": "ns",
        "nodes": 1,
        "source": "shapes",
        "out": StreamSettings(url=str(out), role="data-0"),
        "resolution": 8,
        "count": COUNT,
        "shard_bytes": 1 << 14,
    }
    return PrepareSettings(**given | changes)


def pod(settings: PrepareSettings, folder: Path, index: int = 0) -> str:
    """Runs a pod; what it said in the end."""
    ended = prepare_parts(settings, index, folder / f"scratch-{index}", folder / "secrets")
    assert ended.exit_code == ExitCode.DONE
    return ended.message


def files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@given(st.integers(1, 10**9), st.integers(1, 300), st.integers(300, 20_000))
def test_parts_are_all_there_is(number: int, least: int, most: int) -> None:
    """Each thing in one part, in order; none too large, and none but the last too small."""
    number = min(number, 1000 * most)
    parts = cut(number, least, most)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == number
    assert all(least <= len(part) <= most for part in parts[:-1])
    assert 0 < len(parts[-1]) <= most


def test_however_many_pods_make_the_same_dataset(tmp_path: Path) -> None:
    """One pod or two: the same bytes, which hold the samples that `daybreak prepare` makes, in its
    order, and whose card says the same of them. What is there is not made again."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert pod(told(one), tmp_path) == f"{one} is prepared: 600 samples"
    first, second = (pod(told(two, nodes=2), tmp_path, index) for index in (0, 1))
    assert first == "the parts of pod 0 are prepared; others are still at work"
    assert second == f"{two} is prepared: 600 samples"
    assert files(one) == files(two)
    prepare("shapes", tmp_path / "plain", resolution=8, count=COUNT)
    corpus, samples = opened(two, tmp_path / "cache-two")
    plain, expected = opened(tmp_path / "plain", tmp_path / "cache-plain")
    assert [(s.caption, s.id) for s in samples] == [(s.caption, s.id) for s in expected]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(samples, expected, strict=True))
    card, other = corpus.cards[0], plain.cards[0]
    texts = {"caption_sample"}
    assert card.model_dump(exclude=texts) == other.model_dump(exclude=texts)
    assert {name: len(found) for name, found in card.caption_sample.items()} == {
        "caption": SAMPLES,
        "caption_short": SAMPLES,
    }
    before = {path: path.stat().st_mtime_ns for path in two.rglob("*")}
    assert pod(told(two, nodes=3), tmp_path, 1) == f"{two} was prepared before: 600 samples"
    assert before == {path: path.stat().st_mtime_ns for path in two.rglob("*")}


def test_a_pod_goes_on_where_one_was_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A part whose note is missing, or a shard of which is cut, is made again; no other. A note
    that is half written counts for nothing."""
    pod(told(tmp_path / "whole"), tmp_path)
    out = tmp_path / "out"
    pod(told(out, nodes=2), tmp_path, 0)  # parts 0 and 2
    assert not (out / PREPARED).exists()
    assert not (out / "index.json").exists()
    shard = next(iter(sorted(out.glob("shard.00002.*"))))
    shard.write_bytes(shard.read_bytes()[:-1])
    (out / "prepared" / "part-00001.json").write_bytes(b'{"shards": [')
    caplog.set_level("INFO")
    pod(told(out), tmp_path)
    made = [vars(r)["part"] for r in caplog.records if r.message == "part_prepared"]
    assert made == [1, 2]
    assert files(out) == files(tmp_path / "whole")


def test_a_place_is_of_one_request(tmp_path: Path) -> None:
    """Other options are refused with what differs, while it is made and afterwards; so is a dataset
    that was there before."""
    out = tmp_path / "out"
    pod(told(out, nodes=2), tmp_path, 0)
    with pytest.raises(DatasetError, match=r"options\.seed: \(absent\) -> 1"):
        pod(told(out, seed=1), tmp_path)
    pod(told(out), tmp_path)
    with pytest.raises(DatasetError, match=r"options\.count: 600 -> 601"):
        pod(told(out, count=601), tmp_path)
    prepare("digits", tmp_path / "own", count=8)
    with pytest.raises(DatasetError, match=r"holds a dataset already, which data\.prepare did not"):
        pod(told(tmp_path / "own"), tmp_path)


def test_a_folder_in_buckets_is_joined_with_what_was_left_out(tmp_path: Path) -> None:
    """Buckets of all parts are one dataset's, in a store that is no folder; `skipped.json` lists
    the damaged images of all parts. A folder that has got another image is another source."""
    photos, random = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for number in range(300):
        pixels = random.integers(0, 255, (*[(40, 24), (24, 40)][number % 2], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:03d}.png")
        (photos / f"{number:03d}.txt").write_text(f"photo {number}")
    for number in (7, 290):
        (photos / f"{number:03d}.png").write_bytes(b"no image")
    url = f"memory://{tmp_path.name}"
    options = {"source": str(photos), "count": None, "buckets": True, "skip_unreadable": True}
    for index in (0, 1):
        pod(told(url, nodes=2, resolution=32, **options), tmp_path, index)
    corpus, samples = opened(url, tmp_path / "cache")
    assert {s.caption for s in samples} == {f"photo {n}" for n in range(300) if n not in (7, 290)}
    assert sorted(corpus.cards[0].buckets or ()) == ["24x40", "40x24"]
    import fsspec

    skipped = json.loads(fsspec.filesystem("memory").cat_file(f"{url}/{REPORT}"))
    assert [entry["file"] for entry in skipped] == ["007.png", "290.png"]
    (photos / "300.png").write_bytes((photos / "299.png").read_bytes())
    (photos / "300.txt").write_text("one more")
    with pytest.raises(DatasetError, match=r"other data than data\.prepare now says \(source: "):
        pod(told(url, resolution=32, **options), tmp_path)


def test_a_dataset_gets_columns_shard_by_shard(tmp_path: Path) -> None:
    """Each shard is a part here. The card's captions are still those of all samples, once."""
    prepare("digits", tmp_path / "digits", count=40, shard_bytes=1 << 12)
    shards = len(list((tmp_path / "digits").glob("*.mds")))
    assert shards > 2
    autoencoder = str(save_kl(tmp_path / "kl"))
    out = tmp_path / "out"
    changes = {"source": str(tmp_path / "digits"), "resolution": None, "count": None}
    for index in (0, 1):
        pod(told(out, nodes=2, latents=autoencoder, **changes), tmp_path, index)
    from daybreak_trainer.models.autoencoder import load
    from daybreak_trainer.prepare.latents import LatentColumn

    added = [LatentColumn(load(autoencoder, "--latents"))]
    cards = prepare_datasets(str(tmp_path / "digits"), tmp_path / "plain", [], added=added)
    corpus, samples = opened(out, tmp_path / "cache-out")
    assert corpus.cards[0] == cards[tmp_path / "plain"]
    assert len(corpus.shards) == shards
    plain = read(tmp_path / "plain", tmp_path / "cache-plain")
    assert [(s.caption, s.id) for s in samples] == [(s.caption, s.id) for s in plain]


# --- The process ----------------------------------------------------------------------------------


def environment(folder: Path, settings: PrepareSettings) -> dict[str, str]:
    return os.environ | {
        contract.ENV_PREPARE: settings.to_json(),
        contract.ENV_WORK_DIR: str(folder / "work"),
        contract.ENV_SECRETS_DIR: str(folder / "secrets"),
        contract.ENV_TERMINATION_LOG: str(folder / "said"),
    }


def ended(folder: Path) -> Termination:
    found = Termination.decode((folder / "said").read_text())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("changes", "code", "reason", "message"),
    [
        ({}, ExitCode.DONE, "Prepared", "600 samples"),
        ({"source": "/nowhere"}, ExitCode.BAD_DATA, "BadData", "/nowhere: neither a folder"),
        (
            {"place": "nosuch://x"},
            ExitCode.BAD_RECIPE,
            "StorageRefused",
            "nosuch://x",
        ),
    ],
)
def test_a_pod_ends_with_a_code_and_a_sentence(
    tmp_path: Path, changes: dict[str, Any], code: ExitCode, reason: str, message: str
) -> None:
    """As workers do: what another pod would end with too is told from what may pass."""
    settings = told(changes.pop("place", tmp_path / "out"), **changes)
    command = [sys.executable, "-m", "daybreak_trainer.prepare"]
    done = subprocess.run(command, env=environment(tmp_path, settings), check=False)
    said = ended(tmp_path)
    assert (done.returncode, said.exit_code, said.reason) == (code, code, reason)
    assert message in said.message


def test_a_pod_that_is_stopped_says_so(tmp_path: Path) -> None:
    """In the middle of its work, after the first part."""
    settings = told(tmp_path / "out", resolution=64, count=100_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "daybreak_trainer.prepare"],
        env=environment(tmp_path, settings),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    next(line for line in process.stderr if '"part_prepared"' in line)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == ExitCode.TERMINATED
    assert ended(tmp_path).reason == "Terminated"
    assert (tmp_path / "out" / "prepared" / "part-00000.json").exists()
