"""Pods run on a node of the development cluster as they would on a real one."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.faults import kill_process, processes

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
Run = Callable[..., Json]
RESTRICTED: Json = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 1234,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod(name: str, script: str, *, container: Json | None = None, **spec: Any) -> Json:
    main = {
        "name": "main",
        "image": "none",
        "command": ["bash", "-c", script],
        "securityContext": RESTRICTED,
        **(container or {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}, "annotations": {"note": "hello"}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 2,
            "containers": [main],
            **spec,
        },
    }


class Space:
    """One namespace, and short words for what the tests do in it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, **options).stdout

    def create(self, *manifests: Json) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("create", "-f", "-", input=json.dumps(items))

    def get(self, kind: str, name: str) -> Json:
        found: Json = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def wait(self, name: str, condition: str, seconds: int = 120) -> Json:
        self.kubectl("wait", f"pod/{name}", f"--for={condition}", f"--timeout={seconds}s")
        return self.get("pod", name)

    def wait_phase(self, name: str, phase: str, seconds: int = 120) -> Json:
        return self.wait(name, f"jsonpath={{.status.phase}}={phase}", seconds)

    def run(self, manifest: Json, phase: str = "Succeeded", seconds: int = 120) -> Json:
        self.create(manifest)
        return self.wait_phase(manifest["metadata"]["name"], phase, seconds)

    def logs(self, name: str, *arguments: str) -> str:
        return self.kubectl("logs", name, *arguments)

    def await_event(self, name: str, text: str) -> None:
        """Events are written beside the status, and may come after it."""
        about = f"--field-selector=involvedObject.name={name}"
        await_line(self, text, "get", "events", about, "--watch")


@pytest.fixture
def space(devcluster: Cluster, namespace: str) -> Space:
    return Space(devcluster, namespace)


def terminated(found: Json) -> Json:
    state: Json = found["status"]["containerStatuses"][0]["state"]["terminated"]
    return state


def test_exit_code_message_logs_and_times_are_told(space: Space) -> None:
    """A pod that fails keeps its exit code, its termination message and its logs."""
    script = "echo out; echo err >&2; printf why > /dev/termination-log; exit 75"
    found = space.run(pod("fails", script), "Failed")
    end = terminated(found)
    assert (end["exitCode"], end["reason"], end["message"]) == (75, "Error", "why")
    assert end["startedAt"] <= end["finishedAt"]
    assert set(space.logs("fails").split()) == {"out", "err"}
    assert space.logs("fails", "--tail=1").count("\n") == 1
    assert space.logs("fails", "--timestamps").startswith("20")
    conditions = {item["type"]: item["status"] for item in found["status"]["conditions"]}
    assert conditions["PodScheduled"] == "True"
    assert conditions["Ready"] == "False"


def test_a_signal_is_an_exit_code_above_128(space: Space) -> None:
    """A process that dies of a signal ends its container with 128 + n; without a message, the end
    of the log takes its place where the pod asks for it."""
    script = "echo last words; kill -SEGV $BASHPID; sleep 9"
    fallback = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    # A shell between: process 1 does not die of signals that it sends itself.
    found = space.run(pod("crash", f"bash -c '{script}'; exit $?", container=fallback), "Failed")
    assert terminated(found)["exitCode"] == 139
    assert "last words" in terminated(found)["message"]


def test_the_file_system_is_read_only_and_volumes_are_where_they_should_be(space: Space) -> None:
    """Root is read-only, volumes of every type lie at their paths, and only they can be written."""
    space.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "settings"},
            "data": {"a": "alpha", "b": "beta"},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "keys"},
            "stringData": {"token": "hush"},
        },
    )
    script = """
    set -e
    for path in / $CHECKOUT /tmp /etc /var/lib /usr /etc/settings /root; do
      if touch $path/probe 2>/dev/null; then echo "could write $path"; exit 1; fi
    done
    test "$(cat /etc/settings/sub/a)" = alpha; test ! -e /etc/settings/b
    test "$(cat /etc/one)" = beta
    test "$(stat -c %a -L /run/keys/token)" = 400; test "$(cat /run/keys/token)" = hush
    test "$(cat /info/labels)" = 'app="volumes"'; test "$(cat /info/name)" = volumes
    echo x > /var/lib/some/where/file; mkdir /var/lib/some/where/deep
    echo y > /memory/file; ! head -c 2000000 /dev/zero > /memory/big 2>/dev/null
    test "$(id -u)" = 1234
    test -s /var/run/secrets/kubernetes.io/serviceaccount/token
    python -c 'import sys; assert sys.prefix != sys.base_prefix'
    """
    mounts = [
        {"name": "settings", "mountPath": "/etc/settings"},
        {"name": "settings2", "mountPath": "/etc/one", "subPath": "b"},
        {"name": "keys", "mountPath": "/run/keys"},
        {"name": "info", "mountPath": "/info"},
        {"name": "work", "mountPath": "/var/lib/some/where"},
        {"name": "memory", "mountPath": "/memory"},
    ]
    volumes = [
        {
            "name": "settings",
            "configMap": {"name": "settings", "items": [{"key": "a", "path": "sub/a"}]},
        },
        {"name": "settings2", "configMap": {"name": "settings"}},
        {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 0o400}},
        {
            "name": "info",
            "downwardAPI": {
                "items": [
                    {"path": path, "fieldRef": {"fieldPath": f"metadata.{path}"}}
                    for path in ("labels", "name")
                ]
            },
        },
        {"name": "work", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]
    checkout = {"name": "CHECKOUT", "value": str(Path(__file__).parents[2])}
    container = {"volumeMounts": mounts, "env": [checkout]}
    manifest = pod("volumes", script, container=container, volumes=volumes)
    space.create(manifest)
    found = wait_end(space, "volumes")
    assert found["status"]["phase"] == "Succeeded", space.logs("volumes")
    assert (
        "seccompProfile" in found["metadata"]["annotations"]["devcluster.daybreak.dev/not-enforced"]
    )


def wait_end(space: Space, name: str) -> Json:
    """Wait for the end of the pod's only container, however it ends."""
    path = "jsonpath={.status.containerStatuses[0].state.terminated.finishedAt}"
    return space.wait(name, path)


def test_environment(space: Space) -> None:
    """Variables come from values, fields, ConfigMaps and Secrets, and may refer to one another."""
    data = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"K": "v"}}
    env = [
        {"name": "A", "value": "one"},
        {"name": "B", "value": "$(A)-two $$(A) $(NONE)"},
        {"name": "NOTE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['note']"}}},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "K"}}},
        {
            "name": "NO",
            "valueFrom": {"configMapKeyRef": {"name": "c", "key": "X", "optional": True}},
        },
    ]
    source = [{"prefix": "ALL_", "configMapRef": {"name": "c"}}]
    space.create(data)
    found = space.run(pod("env", "env", container={"env": env, "envFrom": source}))
    seen = dict(line.split("=", 1) for line in space.logs("env").splitlines())
    assert seen["B"] == "one-two $(A) $(NONE)"
    assert (seen["NOTE"], seen["C"], seen["ALL_K"]) == ("hello", "v", "v")
    assert seen["POD_IP"] == found["status"]["podIP"]
    assert seen["NODE"] == found["spec"]["nodeName"]
    assert "NO" not in seen
    assert found["status"]["podIP"].startswith("127.")


def test_a_missing_config_map_is_waited_for_and_named(space: Space) -> None:
    """A pod whose ConfigMap is missing stays pending with an Event that names it, and runs once it
    is there."""
    volumes = [{"name": "late", "configMap": {"name": "late"}}]
    mounts = [{"name": "late", "mountPath": "/late"}]
    manifest = pod("waits", "cat /late/k", container={"volumeMounts": mounts}, volumes=volumes)
    space.create(manifest)
    space.await_event("waits", "'late' not found")
    assert space.get("pod", "waits")["status"]["phase"] == "Pending"
    data = {"k": "here"}
    space.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}, "data": data}
    )
    space.wait_phase("waits", "Succeeded")
    assert space.logs("waits") == "here"


def test_init_containers_and_sidecars(space: Space) -> None:
    """Init containers run one after another before the others, which share their volumes; a sidecar
    runs beside them and ends after them."""
    share = {"volumeMounts": [{"name": "work", "mountPath": "/shared"}]}

    def init(name: str, script: str, **rest: Any) -> Json:
        return {
            "name": name,
            "image": "none",
            "command": ["bash", "-c", script],
            "securityContext": RESTRICTED,
            **share,
            **rest,
        }

    sidecar = "trap 'echo side >> /shared/log; exit 0' TERM; touch /shared/up; sleep 60 & wait"
    inits = [
        init("first", "echo first >> /shared/log"),
        init("side", sidecar, restartPolicy="Always"),
        init("second", "until test -e /shared/up; do sleep 0.1; done; echo second >> /shared/log"),
    ]
    manifest = pod(
        "inits",
        "echo main >> /shared/log; cat /shared/log",
        container=share,
        initContainers=inits,
        volumes=[{"name": "work", "emptyDir": {}}],
    )
    found = space.run(manifest)
    assert space.logs("inits", "-c", "main").split() == ["first", "second", "main"]
    codes = [
        item["state"]["terminated"]["exitCode"] for item in found["status"]["initContainerStatuses"]
    ]
    assert codes == [0, 0, 0]


def test_a_failed_init_container_fails_the_pod(space: Space) -> None:
    """Nothing else is started."""
    bad = {
        "name": "bad",
        "image": "none",
        "command": ["false"],
        "securityContext": RESTRICTED,
    }
    found = space.run(pod("bad-init", "true", initContainers=[bad]), "Failed")
    assert found["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 1
    assert terminated(found).get("startedAt") is None


def test_deletion_gives_the_grace_period_and_removes_the_object(space: Space) -> None:
    """SIGTERM reaches process 1, which may end by itself; one that ignores it is killed when the
    time is over, and no process is left."""
    script = "trap 'sleep 0.5; echo done; exit 3' TERM; echo up; sleep 600 & wait"
    polite = pod("polite", script, terminationGracePeriodSeconds=120)
    stubborn = pod("stubborn", "trap '' TERM; echo up; sleep 600 & wait; sleep 600")
    space.create(polite, stubborn)
    for name in ("polite", "stubborn"):
        await_log(space, name, "up")
    inside = processes(space.cluster, space.namespace, "stubborn")
    with subprocess.Popen(
        [space.cluster.info.kubectl, "-n", space.namespace, "logs", "-f", "polite"],
        env=space.cluster.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "up\n"  # it follows before there is an end
        space.kubectl("delete", "pod", "polite")
        output, _ = follower.communicate(timeout=60)
    assert output == "done\n"
    begun = time.monotonic()
    space.kubectl("delete", "pod", "stubborn")
    assert time.monotonic() - begun > 1.9
    assert [pid for pid in inside if Path(f"/proc/{pid}").exists()] == []


def await_log(space: Space, name: str, text: str) -> None:
    """Follow the log until the text appears."""
    space.wait_phase(name, "Running")
    await_line(space, text, "logs", "-f", name)


def await_line(space: Space, text: str, *arguments: str) -> None:
    """Follow what kubectl prints until the text appears."""
    with subprocess.Popen(
        [space.cluster.info.kubectl, "-n", space.namespace, *arguments],
        env=space.cluster.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        for line in follower.stdout:
            if text in line:
                follower.terminate()
                return
    raise AssertionError(f"`kubectl {' '.join(arguments)}` ended without {text!r}")


def test_restarts(space: Space) -> None:
    """A container that fails is started again where the policy says so, and its former end and log
    are kept."""
    script = "if test -e /scratch/was; then sleep 60; fi; touch /scratch/was; echo first; exit 9"
    manifest = pod(
        "again",
        script,
        container={"volumeMounts": [{"name": "work", "mountPath": "/scratch"}]},
        volumes=[{"name": "work", "emptyDir": {}}],
        restartPolicy="OnFailure",
    )
    space.create(manifest)
    found = space.wait("again", "jsonpath={.status.containerStatuses[0].restartCount}=1")
    space.wait("again", "condition=Ready")
    item = found["status"]["containerStatuses"][0]
    assert item["lastState"]["terminated"]["exitCode"] == 9
    assert space.logs("again", "--previous").strip() == "first"


def test_readiness_and_liveness_probes(space: Space) -> None:
    """A pod is ready while its HTTP probe passes; a container whose liveness probe fails is ended,
    and the Event says why."""
    script = """
    cd /scratch; touch live; python -m http.server --bind $POD_IP 8099 & server=$!
    until test -e stop; do sleep 0.1; done; rm live; wait
    """
    container = {
        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "ports": [{"name": "web", "containerPort": 8099}],
        "volumeMounts": [{"name": "work", "mountPath": "/scratch"}],
        "startupProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 1, "failureThreshold": 90},
        "readinessProbe": {"httpGet": {"path": "/live", "port": "web"}, "periodSeconds": 1},
        "livenessProbe": {
            "exec": {"command": ["test", "!", "-e", "/scratch/dead"]},
            "periodSeconds": 1,
            "timeoutSeconds": 20,
            "failureThreshold": 1,
        },
    }
    folder = [{"name": "work", "persistentVolumeClaim": {"claimName": "work"}}]
    space.create(claim("work"), pod("probed", script, container=container, volumes=folder))
    space.wait("probed", "condition=Ready")
    path = volume_path(space, "work")
    (path / "stop").touch()
    space.wait("probed", "condition=Ready=false")
    (path / "dead").touch()
    found = wait_end(space, "probed")
    assert terminated(found)["exitCode"] in (137, 143)
    space.await_event("probed", "Liveness probe")


def claim(name: str, path: Path | None = None) -> Json:
    chosen = {} if path is None else {"devcluster.daybreak.dev/path": str(path)}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "annotations": chosen},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def volume_path(space: Space, name: str) -> Path:
    volume = space.get("pvc", name)["spec"]["volumeName"]
    return Path(space.get("pv", volume)["spec"]["hostPath"]["path"])


def test_persistent_volumes(space: Space, tmp_path: Path) -> None:
    """A claim gets a folder that outlives pods and goes with the claim; a host folder that the
    claim chose stays."""
    space.create(claim("own"), claim("chosen", tmp_path / "data"))
    mounts = [{"name": name, "mountPath": f"/mnt/somewhere/{name}"} for name in ("own", "chosen")]
    volumes = [
        {"name": name, "persistentVolumeClaim": {"claimName": name}} for name in ("own", "chosen")
    ]
    script = "for name in own chosen; do echo $name > /mnt/somewhere/$name/file; done"
    container = {"volumeMounts": mounts}
    space.run(pod("writes", script, container=container, volumes=volumes))
    space.run(pod("reads", "cat /mnt/somewhere/*/file", container=container, volumes=volumes))
    assert space.logs("reads").split() == ["chosen", "own"]
    path = volume_path(space, "own")
    volume = space.get("pvc", "own")["spec"]["volumeName"]
    space.kubectl("delete", "pod", "writes", "reads")
    space.kubectl("delete", "pvc", "own", "chosen")
    space.kubectl("wait", "--for=delete", f"pv/{volume}", "--timeout=120s")
    assert not path.exists()
    assert (tmp_path / "data" / "file").read_text() == "chosen\n"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"volumes": [{"name": "n", "csi": {"driver": "x"}}]}, "spec.volumes[0].csi"),
        (
            {"container": {"command": None}},
            "spec.containers[0].command",
        ),
        (
            {"container": {"readinessProbe": {"grpc": {"port": 1}}}},
            "spec.containers[0].readinessProbe",
        ),
    ],
    ids=["volume", "no command", "probe"],
)
def test_refusals_name_the_field(space: Space, change: Json, named: str) -> None:
    """What cannot be had here fails with the field's name in the status and in an Event."""
    found = space.run(pod("refused", "true", **change), "Failed")
    assert found["status"]["reason"] == "Unsupported"
    assert named in found["status"]["message"]
    await_line(space, named, "get", "events", "--watch")


def test_a_command_that_does_not_exist_is_a_start_error(space: Space) -> None:
    """The exit code is 128, as with a container runtime, and the message names the command."""
    found = space.run(pod("typo", "", container={"command": ["no-such-command"]}), "Failed")
    assert (terminated(found)["exitCode"], terminated(found)["reason"]) == (128, "StartError")
    assert "no-such-command" in terminated(found)["message"]


def test_the_active_deadline(space: Space) -> None:
    """A pod that is active for longer than its deadline is ended and failed with that reason."""
    found = space.run(pod("slow", "sleep 60", activeDeadlineSeconds=1), "Failed")
    assert found["status"]["reason"] == "DeadlineExceeded"


def test_workers_of_an_indexed_job_find_each_other(space: Space) -> None:
    """Pods of an Indexed Job reach one another by the names of their headless Service, and the Job
    completes."""
    space.create(
        claim("met"),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "workers"},
            "spec": {
                "clusterIP": "None",
                "selector": {"job-name": "gang"},
                "publishNotReadyAddresses": True,
            },
        },
    )
    full = f"gang-1.workers.{space.namespace}.svc.cluster.local"
    script = f"""
    until getent hosts gang-0.workers gang-1.workers {full} | wc -l | grep -q 3; do sleep 0.1; done
    hostname
    # The names of a worker that has ended are gone, so nobody ends before all have met.
    touch /met/$JOB_COMPLETION_INDEX; until test -e /met/0 -a -e /met/1; do sleep 0.1; done
    """
    mounts = [{"name": "met", "mountPath": "/met"}]
    volumes = [{"name": "met", "persistentVolumeClaim": {"claimName": "met"}}]
    container = {"volumeMounts": mounts}
    template = pod("gang", script, container=container, subdomain="workers", volumes=volumes)
    del template["metadata"]["name"], template["apiVersion"], template["kind"]
    space.create(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "gang"},
            "spec": {
                "completionMode": "Indexed",
                "completions": 2,
                "parallelism": 2,
                "backoffLimit": 0,
                "template": template,
            },
        }
    )
    space.kubectl("wait", "job/gang", "--for=condition=Complete", "--timeout=120s")
    lines = space.logs("job/gang", "--all-pods=true", "--prefix=false").split()
    assert {"gang-0", "gang-1"} <= set(lines)
    space.kubectl("delete", "job", "gang", "--cascade=foreground", "--timeout=120s")


def test_a_process_can_be_killed_from_outside(space: Space) -> None:
    """`kill_process` reaches the one process that the test names, and the pod sees its end."""
    script = "RANK=1 sleep 61 & child=$!; echo up; wait $child; echo child ended $?; exit 5"
    space.create(pod("victim", script))
    await_log(space, "victim", "up")
    killed = kill_process(
        space.cluster, space.namespace, "victim", match="RANK=1", number=signal.SIGKILL
    )
    assert len(killed) == 1
    found = wait_end(space, "victim")
    assert terminated(found)["exitCode"] == 5
    assert "child ended 137" in space.logs("victim")
