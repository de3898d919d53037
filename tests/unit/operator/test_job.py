"""The Job of an attempt, as the API server gets it."""

from __future__ import annotations

from typing import Any

import pytest

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.spec import TrainingRunSpec
from daybreak_operator.api.status import TrainingRunStatus
from daybreak_operator.children.job import devices_per_node, gpus, job
from daybreak_operator.observation import FixedRecipe
from daybreak_trainer.contract import ENV_RUN, ComputeSettings, HealthSettings, RunSettings
from daybreak_trainer.recipe import resolve

RECIPE = FixedRecipe.of(resolve({"preset": "smoke"}))


def a_run(workers: dict[str, Any], **fields: Any) -> TrainingRun:
    spec: dict[str, Any] = {
        "workers": {"image": "i", **workers},
        "data": {"streams": [{"url": "s3://d"}]},
        "recipe": {"preset": "smoke"},
        "checkpoint": {"storage": "s3://c"},
        **fields,
    }
    return TrainingRun(
        name="r",
        namespace="n",
        uid="u",
        generation=1,
        resource_version="1",
        deleting=False,
        spec=TrainingRunSpec.model_validate(spec),
        status=TrainingRunStatus(),
        raw_recipe={"preset": "smoke"},
    )


def trainer(workers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The trainer's container."""
    made = job(a_run(workers, **fields), 1, RECIPE, nodes=2)
    found: dict[str, Any] = made["spec"]["template"]["spec"]["containers"][0]
    return found


def environment(workers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The trainer container's environment, by name."""
    container = trainer(workers, **fields)
    return {entry["name"]: entry.get("value") for entry in container["env"]}


@pytest.mark.parametrize(
    ("resources", "processes", "threads"),
    [
        ({"requests": {"cpu": "500m"}}, "auto", "1"),
        ({"requests": {"cpu": "500m"}, "limits": {"cpu": 8}}, "auto", "8"),
        ({"limits": {"cpu": "8"}}, 3, "2"),
        ({"requests": {"memory": "1Gi"}}, 1, None),
        ({"requests": {"cpu": "many"}}, 1, None),
    ],
)
def test_ranks_compute_with_the_cpus_that_are_theirs(
    resources: dict[str, Any], processes: int | str, threads: str | None
) -> None:
    """Two pods on a node must not each start a thread for each of its CPUs."""
    given = environment({"resources": resources, "processesPerNode": processes})
    assert given.get("OMP_NUM_THREADS") == threads


def test_the_template_may_say_how_many_threads() -> None:
    """What the user lays over the pod wins."""
    container = {"name": "trainer", "env": [{"name": "OMP_NUM_THREADS", "value": "5"}]}
    given = environment(
        {
            "resources": {"limits": {"cpu": 8}},
            "template": {"spec": {"containers": [container]}},
        }
    )
    assert given["OMP_NUM_THREADS"] == "5"


def settings(**fields: Any) -> RunSettings:
    return RunSettings.model_validate_json(environment({}, **fields)[ENV_RUN])


def test_the_workers_are_told_how_to_compute_and_when_they_count_as_hung() -> None:
    """What the run says reaches the trainer, in seconds."""
    given = settings(
        compute={"sharding": "hsdp", "compile": "blocks", "deviceBatchSize": 32},
        healthPolicy={"startupDeadline": "1h", "progressDeadline": "90s", "rankRestarts": 0},
    )
    assert given.compute == ComputeSettings(sharding="hsdp", compile="blocks", device_batch_size=32)
    assert given.health == HealthSettings(
        startup_seconds=3600, progress_seconds=90, rank_restarts=0
    )


def test_a_prompt_is_no_reference() -> None:
    """The kubelet replaces `$(NAME)` and `$$` in a value; what users write arrives as it is."""
    prompt = "$(DAYBREAK_POD_IP) costs $$5"
    raw = environment({}, evaluation={"prompts": [prompt]})[ENV_RUN]
    assert "$$(DAYBREAK_POD_IP) costs $$$$5" in raw
    assert RunSettings.model_validate_json(raw.replace("$$", "$")).evaluation.prompts == (prompt,)


def test_the_workers_are_told_what_to_judge_and_when() -> None:
    """An interval is a time or a number of steps; 0s is none, and the run is judged at its end."""
    given = settings(
        evaluation={
            "interval": "2000steps",
            "validationSamples": 64,
            "extractors": {"clip": "openai/clip-vit-base-patch32"},
        }
    ).evaluation
    assert (given.interval_steps, given.interval_seconds) == (2000, None)
    assert given.validation_samples == 64
    assert given.extractors.given == {"clip": "openai/clip-vit-base-patch32"}
    assert settings().evaluation.interval_seconds == 900
    never = settings(evaluation={"interval": "0s"}).evaluation
    assert (never.interval_steps, never.interval_seconds) == (None, None)


def test_operator_and_trainer_have_the_same_defaults() -> None:
    """A run that says nothing trains as one without the operator does."""
    given = settings()
    assert given.compute == ComputeSettings()
    assert given.health == HealthSettings()


@pytest.mark.parametrize(
    ("limit", "size"), [("10Gi", 8 << 30), ("1000", 800), ("1.5Ki", int(0.8 * 1536))]
)
def test_the_cache_leaves_room_on_its_volume(limit: str, size: int) -> None:
    """The kubelet evicts a pod whose volume grows beyond its limit."""
    given = settings(data={"streams": [{"url": "s3://d"}], "cache": {"sizeLimit": limit}})
    assert given.cache_bytes == pytest.approx(size, abs=1)


def test_every_stream_comes_with_its_weight_and_its_secret() -> None:
    streams = [{"url": "s3://a", "weight": 3}, {"persistentVolumeClaim": {"claimName": "b"}}]
    given = settings(data={"streams": streams})
    assert [(s.url, s.weight, s.role) for s in given.streams] == [
        ("s3://a", 3, "data-0"),
        ("/mnt/daybreak/data-1", 1, "data-1"),
    ]


@pytest.mark.parametrize(
    ("given", "told", "mounted"),
    [
        ("s3://other/run-u/attempt-0003/step-00041000", None, False),
        ("/mnt/daybreak/checkpoint/run-u/attempt-0003/step-00041000", None, False),
        (
            "older/run-u/attempt-0003/step-00041000",
            "/mnt/daybreak/resume-from/older/run-u/attempt-0003/step-00041000",
            True,
        ),
    ],
)
def test_the_commit_to_begin_from_is_found_where_it_is(
    given: str, told: str | None, mounted: bool
) -> None:
    """A URL and a path that the checkpoints' own mount has as they are; of a path on the volume the
    workers see the whole volume, and can write nothing there."""
    claim = {"claimName": "checkpoints", "subPath": "newer"}
    checkpoint = {"persistentVolumeClaim": claim, "resumeFrom": given}
    container = trainer({}, checkpoint=checkpoint)
    assert settings(checkpoint=checkpoint).resume_from == (told or given)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    mount = {"name": "volume-checkpoint", "mountPath": "/mnt/daybreak/resume-from"}
    found = mounts.get("/mnt/daybreak/resume-from")
    assert found == (mount | {"readOnly": True} if mounted else None)


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({"nvidia.com/gpu": 8}, 8),
        ({"amd.com/gpu": "4", "cpu": 8}, 4),
        ({"nvidia.com/gpu.shared": 2}, 2),
        ({"nvidia.com/mig-1g.10gb": 2, "nvidia.com/mig-2g.20gb": 1}, 3),
        ({"gpu.intel.com/i915": 1, "gpu.intel.com/memory.max": 8 * 10**9}, 1),
        ({"aliyun.com/gpu-mem": 16, "nvidia.com/gpumem": 3000}, 0),
        ({"nvidia.com/gpu": "many"}, 0),
    ],
)
def test_devices_are_counted_and_not_their_memory(limits: dict[str, Any], count: int) -> None:
    """gpuHours and cost are of devices, whoever makes them and however they are shared out."""
    workers = {"image": "i", "resources": {"limits": limits}}
    spec = {
        "workers": workers,
        "data": {"streams": [{"url": "s3://d"}]},
        "recipe": {"preset": "smoke"},
        "checkpoint": {"storage": "s3://c"},
    }
    assert gpus(TrainingRunSpec.model_validate(spec)) == count


@pytest.mark.parametrize(("laid", "count"), [({}, 2), ({"nvidia.com/gpu": 8}, 8), (None, 2)])
def test_devices_that_the_template_asks_for_are_counted(
    laid: dict[str, Any] | None, count: int
) -> None:
    """As many as the trainer of the Job's pods has: the ledger and plans are of those."""
    overlay = {"name": "trainer", "resources": {"limits": laid} if laid is not None else {}}
    other = {"name": "proxy", "image": "p", "resources": {"limits": {"nvidia.com/gpu": 1}}}
    workers = {
        "image": "i",
        "resources": {"limits": {"nvidia.com/gpu": 2}},
        "template": {"spec": {"containers": [overlay, other]}},
    }
    made = trainer(workers)
    assert made["resources"]["limits"]["nvidia.com/gpu"] == count
    run = a_run(workers)
    assert (gpus(run.spec), devices_per_node(run)) == (count, count)
