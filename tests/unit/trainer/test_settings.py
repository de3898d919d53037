"""What a pod was given is read once; what is wrong with it is named, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_settings import run_settings

from daybreak_trainer import contract, settings
from daybreak_trainer.recipe import RecipeError, resolve
from daybreak_trainer.settings import SettingsError

RECIPE = resolve({"preset": "smoke"})
RUN = run_settings(nodes=2, recipe_hash=RECIPE.hash)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a pod that is given everything as it should be."""
    (tmp_path / "recipe.json").write_text(RECIPE.to_json())
    return {
        contract.ENV_RUN: RUN.to_json(),
        contract.ENV_NODE_INDEX: "1",
        contract.ENV_RECIPE_PATH: str(tmp_path / "recipe.json"),
        contract.ENV_SECRETS_DIR: str(tmp_path / "secrets"),
        contract.ENV_WORK_DIR: str(tmp_path / "work"),
    }


def secret(environment: dict[str, str], key: str, value: bytes) -> Path:
    folder = Path(environment[contract.ENV_SECRETS_DIR]) / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / key).write_bytes(value)
    return folder / key


def test_a_pod_reads_what_the_operator_wrote(environment: dict[str, str], tmp_path: Path) -> None:
    """Settings, index, recipe and folders arrive unchanged."""
    found = settings.read(environment)
    assert (found.run, found.node, found.recipe) == (RUN, 1, RECIPE)
    assert found.work_dir == settings.work_dir(environment) == tmp_path / "work"


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (None, "DAYBREAK_RUN is not set"),
        ("", "DAYBREAK_RUN: the whole: Invalid JSON"),
        ("[]", "DAYBREAK_RUN: the whole: Input should be an object"),
        (RUN.model_copy(update={"attempt": 0}).to_json(), "DAYBREAK_RUN: attempt: "),
        (json.dumps({**json.loads(RUN.to_json()), "more": 1}), "DAYBREAK_RUN: more: Extra inputs"),
        (RUN.model_copy(update={"streams": ()}).to_json(), "DAYBREAK_RUN: streams: "),
    ],
)
def test_bad_settings_name_the_field(
    environment: dict[str, str], raw: str | None, sentence: str
) -> None:
    """Missing, not JSON, not an object, out of range, unknown, empty."""
    del environment[contract.ENV_RUN]
    if raw is not None:
        environment[contract.ENV_RUN] = raw
    with pytest.raises(SettingsError, match=sentence):
        settings.read(environment)


@pytest.mark.parametrize("index", ["", "-1", "2", "one", "²"])
def test_an_index_outside_the_run_is_refused(environment: dict[str, str], index: str) -> None:
    """Two pods that took the same place would wait for a third for ever."""
    environment[contract.ENV_NODE_INDEX] = index
    with pytest.raises(SettingsError, match="it must be an index from 0 to 1"):
        settings.read(environment)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe{}", b"\x80"])
def test_an_unreadable_recipe_names_its_file(
    environment: dict[str, str], content: bytes | None
) -> None:
    """Missing, empty, cut, UTF-16 or plain bytes: one sentence with the path."""
    path = Path(environment[contract.ENV_RECIPE_PATH])
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"recipe {path}: "):
        settings.read(environment)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ([], "recipe: Input should be a valid dictionary"),
        ({**json.loads(RECIPE.to_json()), "stages": []}, r"recipe\.stages: "),
        ({**json.loads(RECIPE.to_json()), "seed": 1}, "this attempt was made for"),
    ],
)
def test_a_recipe_that_is_none_is_refused(
    environment: dict[str, str], document: Any, sentence: str
) -> None:
    """Not an object, not trainable, or not the one that the attempt names."""
    Path(environment[contract.ENV_RECIPE_PATH]).write_text(json.dumps(document))
    with pytest.raises(RecipeError, match=sentence):
        settings.read(environment)


def test_a_secrets_keys_become_options(environment: dict[str, str]) -> None:
    """Each key is one option, without the newline that `--from-file` keeps; `options.json` holds
    those that are no strings; the folder's own links (`..data`) are none."""
    secret(environment, "key", b"AKIA\n")
    secret(environment, "options.json", b'{"client_kwargs": {"endpoint_url": "http://s3"}}')
    secret(environment, "..data", b"link")
    found = settings.read(environment)
    assert found.storage_options("checkpoint") == {
        "key": "AKIA",
        "client_kwargs": {"endpoint_url": "http://s3"},
    }
    assert found.storage_options("export") == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("options.json", b"[]"),
        ("options.json", b'[["anon", true]]'),
        ("options.json", b'["ab"]'),
        ("options.json", b"null"),
        ("options.json", b'"secret-value"'),
        ("options.json", b"{secret-value"),
        ("options.json", b"secret-value\xff"),
        ("key", b"secret-value\xff"),
    ],
)
def test_a_bad_secret_is_named_and_not_shown(
    environment: dict[str, str], key: str, value: bytes
) -> None:
    """A list, even one that Python would take for a mapping, is no object of options. The message
    names the file; what is in it stays out of logs and statuses."""
    file = secret(environment, key, value)
    with pytest.raises(SettingsError, match=f"secret {file}: ") as error:
        settings.read(environment).storage_options("checkpoint")
    assert "secret-value" not in str(error.value)
