"""The node agent's rules, without a cluster."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_devcluster.agent.environment import (
    NotReadyError,
    PodAddress,
    build_environment,
    expand,
    field_value,
)
from daybreak_devcluster.agent.hosts import hosts_file, rewrite
from daybreak_devcluster.agent.limits import in_memory, not_enforced, refusals
from daybreak_devcluster.agent.logs import ContainerLog, LogQuery
from daybreak_devcluster.agent.quantity import parse_quantity
from daybreak_devcluster.agent.rootfs import HostView, Mount, root_options
from daybreak_devcluster.agent.status import ContainerState, conditions, phase
from daybreak_devcluster.agent.volumes import sub_path

Json = dict[str, Any]
ADDRESS = PodAddress("127.1.2.3", "127.0.0.1", "node-0")
NO_VIEW = HostView(keep=(), hide=())


def pod(name: str = "p", *, container: Json | None = None, **spec: Any) -> Json:
    main = {"name": "main", "image": "i", "command": ["true"], **(container or {})}
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "labels": {"app": "a"}}
    return {"metadata": metadata, "spec": {"containers": [main], **spec}}


@pytest.mark.parametrize(
    ("manifest", "named"),
    [
        (pod(hostPID=True), "spec.hostPID"),
        (pod(volumes=[{"name": "v", "nfs": {}}]), "spec.volumes[0].nfs"),
        (
            pod(volumes=[{"name": "v", "projected": {"sources": [{"clusterTrustBundle": {}}]}}]),
            "spec.volumes[0].projected.sources[0].clusterTrustBundle",
        ),
        (
            pod(container={"securityContext": {"privileged": True}}),
            "spec.containers[0].securityContext.privileged",
        ),
        (pod(container={"command": []}), "spec.containers[0].command"),
        (pod(container={"livenessProbe": {"grpc": {}}}), "spec.containers[0].livenessProbe"),
        (
            pod(container={"lifecycle": {"postStart": {}}}),
            "spec.containers[0].lifecycle.postStart",
        ),
        (
            pod(initContainers=[{"name": "i", "args": ["x"], "volumeDevices": [{}]}]),
            "spec.initContainers[0].volumeDevices",
        ),
        (
            pod(
                container={"env": [{"name": "E", "valueFrom": {"resourceFieldRef": {}}}]},
            ),
            "spec.containers[0].env[0].valueFrom.resourceFieldRef",
        ),
    ],
)
def test_each_refusal_names_its_field(manifest: Json, named: str) -> None:
    """Exactly one sentence, which begins with the field."""
    (sentence,) = refusals(manifest)
    assert sentence.startswith(named)


def test_a_plain_pod_is_not_refused() -> None:
    """Nor is one that uses everything that is supported."""
    volumes = [{"name": "v", "emptyDir": {}}, {"name": "c", "configMap": {"name": "c"}}]
    probe = {"httpGet": {"port": 1}}
    assert refusals(pod(volumes=volumes, container={"readinessProbe": probe})) == []


def test_what_is_not_enforced_is_listed() -> None:
    """Only what this pod asks for, beside what never holds."""
    assert not_enforced(pod()) == ["NetworkPolicy", "image"]
    limited = pod(container={"resources": {"limits": {"cpu": "1"}}})
    assert "resources.limits" in not_enforced(limited)


def test_a_memory_volume_is_one_container_s_own() -> None:
    """Two containers that share it need a folder, and the pod is told."""
    volume = {"name": "m", "emptyDir": {"medium": "Memory"}}
    mounts = {"volumeMounts": [{"name": "m", "mountPath": "/m"}]}
    alone = pod(container=mounts, volumes=[volume], restartPolicy="Never")
    assert in_memory(alone, volume)
    init = {"name": "i", "args": ["x"], **mounts}
    shared = pod(container=mounts, volumes=[volume], restartPolicy="Never", initContainers=[init])
    assert not in_memory(shared, volume)
    assert any("medium Memory" in item for item in not_enforced(shared))


@given(st.text(alphabet="ab$(){} ", max_size=30))
def test_expansion_leaves_text_without_references_alone(text: str) -> None:
    """Nothing but `$$` and `$(NAME)` changes."""
    assert expand(text, {}) == text.replace("$$", "$")


def test_expansion() -> None:
    """Known names are replaced, unknown ones stay, `$$` escapes."""
    assert expand("$(A) $(B) $$(A)", {"A": "1"}) == "1 $(B) $(A)"


def test_fields() -> None:
    """Labels by name, addresses, and a clear refusal of unknown paths."""
    assert field_value(pod(), "metadata.labels['app']", ADDRESS) == "a"
    assert field_value(pod(), "metadata.labels", ADDRESS) == 'app="a"'
    assert field_value(pod(), "status.podIP", ADDRESS) == "127.1.2.3"
    with pytest.raises(ValueError, match=r"status\.phase"):
        field_value(pod(), "status.phase", ADDRESS)


def test_a_missing_key_is_named() -> None:
    """The variable waits for a key of a ConfigMap that is there without it."""

    async def fetch(kind: str, name: str) -> Json | None:
        return {"other": b"x"}

    env = [{"name": "V", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]
    manifest = pod(container={"env": env})
    container = manifest["spec"]["containers"][0]
    with pytest.raises(NotReadyError, match="'c' has no key 'k'"):
        asyncio.run(build_environment(manifest, container, ADDRESS, {}, fetch))


def peer(name: str, ip: str, *, ready: bool = False, **spec: Any) -> Json:
    found = pod(name, **spec)
    conditions_ = [{"type": "Ready", "status": "True" if ready else "False"}]
    found["status"] = {"podIP": ip, "phase": "Running", "conditions": conditions_}
    return found


def service(*, publish: bool, cluster_ip: str = "None") -> Json:
    spec = {
        "clusterIP": cluster_ip,
        "selector": {"app": "a"},
        "publishNotReadyAddresses": publish,
    }
    return {"metadata": {"name": "s", "namespace": "ns"}, "spec": spec}


def test_names_follow_the_headless_service() -> None:
    """A peer is found only where cluster DNS would answer."""
    me = pod("me")
    other = peer("other", "127.9.9.9", hostname="h-1", subdomain="s")
    line = "127.9.9.9\th-1.s h-1.s.ns h-1.s.ns.svc h-1.s.ns.svc.cluster.local s "
    assert line in hosts_file(me, "127.1.1.1", [other], [service(publish=True)])
    assert "127.9.9.9" not in hosts_file(me, "127.1.1.1", [other], [service(publish=False)])
    assert "127.9.9.9" not in hosts_file(me, "127.1.1.1", [other], [])
    with_ip = service(publish=True, cluster_ip="10.96.0.9")
    assert "127.9.9.9" not in hosts_file(me, "127.1.1.1", [other], [with_ip])
    ready = peer("other", "127.9.9.9", ready=True, hostname="h-1", subdomain="s")
    assert line in hosts_file(me, "127.1.1.1", [ready], [service(publish=False)])


def test_no_name_is_answered_twice() -> None:
    """A pod's own full name stands on its own line alone."""
    me = peer("me", "127.1.1.1", hostname="h-0", subdomain="s")
    text = hosts_file(me, "127.1.1.1", [me], [service(publish=True)])
    assert text.count("h-0.s.ns.svc.cluster.local") == 1


def test_the_hosts_file_is_rewritten_in_place(tmp_path: Path) -> None:
    """The same inode, longer and shorter."""
    path = tmp_path / "hosts"
    rewrite(path, "long content\n")
    inode = path.stat().st_ino
    rewrite(path, "short\n")
    assert (path.read_text(), path.stat().st_ino) == ("short\n", inode)


def options_of(*mounts: Mount, tmp: bool = False) -> str:
    return " ".join(root_options(mounts, NO_VIEW, writable_tmp=tmp, gpus=False))


def test_a_mount_point_that_the_host_lacks(tmp_path: Path) -> None:
    """The nearest folder that exists is rebuilt, and is read-only again in the end."""
    options = options_of(Mount("/usr/share/no/such", tmp_path, writable=True))
    assert "--tmpfs /usr/share " in options
    assert f"--bind {tmp_path} /usr/share/no/such" in options
    assert options.index("--tmpfs /usr/share ") < options.index("/usr/share/no/such")
    assert "--remount-ro /usr/share" in options


def test_nested_volumes_are_mounted_outside_in(tmp_path: Path) -> None:
    """The inner mount point is made in the outer volume."""
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    outer.mkdir()
    inner.mkdir()
    options = options_of(Mount("/data/sub", inner), Mount("/data", outer, writable=True))
    assert options.index(f"{outer} /data") < options.index(f"{inner} /data/sub")
    assert (outer / "sub").is_dir()


def test_two_pods_may_make_a_sub_path_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to be there after it was looked for."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert sub_path(tmp_path, "run", writable=True) == (tmp_path / "run").resolve()


def test_tmp_is_writable_only_without_a_read_only_root() -> None:
    """`readOnlyRootFilesystem` closes /tmp too."""
    assert "--remount-ro /tmp" in options_of()
    assert "--remount-ro /tmp" not in options_of(tmp=True)


def test_a_mount_that_hides_the_environment_is_an_error(tmp_path: Path) -> None:
    """Its message names both paths."""
    view = HostView(keep=(Path("/opt/venv"),), hide=())
    with pytest.raises(ValueError, match="/opt would hide /opt/venv"):
        root_options([Mount("/opt", tmp_path)], view, writable_tmp=True, gpus=False)


@pytest.mark.parametrize(
    ("text", "value"), [("1Gi", 2**30), ("500m", 0.5), ("12", 12), ("1e3", 1000), ("2k", 2000)]
)
def test_quantities(text: str, value: float) -> None:
    """Binary and decimal suffixes."""
    assert parse_quantity(text) == value


def test_a_word_is_no_quantity() -> None:
    """The message shows it."""
    with pytest.raises(ValueError, match="'much'"):
        parse_quantity("much")


def state(code: int | None = None, *, running: bool = False, sidecar: bool = False) -> Any:
    made = ContainerState("c", "i", sidecar=sidecar)
    if running or code is not None:
        made.run()
    if code is not None:
        made.end(code, "Error", "")
    return made


def test_phases() -> None:
    """A pod is running while anything does, and its end is the worst of its containers'."""
    assert phase([], [state()], ended=False) == "Pending"
    assert phase([], [state(0), state(running=True)], ended=False) == "Running"
    assert phase([], [state(0), state(0)], ended=True) == "Succeeded"
    assert phase([], [state(0), state(1)], ended=True) == "Failed"
    assert phase([state(137, sidecar=True)], [state(0)], ended=True) == "Succeeded"


def test_conditions_name_the_unready_container() -> None:
    """And a pod that completed says that."""
    found = conditions([], [state(running=True)], "Running")
    assert found["Ready"] == ("False", "ContainersNotReady", "containers with unready status: [c]")
    assert conditions([], [state(0)], "Succeeded")["Ready"][1] == "PodCompleted"


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_logs_come_out_as_they_went_in(tmp_path_factory: Any, chunks: list[bytes]) -> None:
    """However the output was cut into pieces, with or without a last line's end."""

    async def through() -> bytes:
        log = ContainerLog(tmp_path_factory.mktemp("log") / "0.log")
        for chunk in chunks:
            if chunk:
                log.feed("stdout", chunk)
        log.feed("stdout", b"")
        log.close()
        return b"".join([text async for text in log.read(LogQuery(follow=True))])

    assert asyncio.run(through()) == b"".join(chunks)
