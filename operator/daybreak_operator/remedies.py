"""What a user may change where a pod finds no node or does not start: the field of the spec, and
what it says now. Kubelets and schedulers know of pods only. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from daybreak_operator.api.prepare import Prepare
from daybreak_operator.api.spec import TrainingRunSpec, Workers
from daybreak_operator.api.types import PersistentVolumeClaim
from daybreak_operator.observation import IMAGE_REASONS, PodView


def is_about_image(pod: PodView) -> bool:
    """Whether a container waits for its image."""
    return (pod.waiting or "").partition(":")[0] in IMAGE_REASONS


def of_start(spec: TrainingRunSpec, pod: PodView) -> str:
    """For a pod whose container waits for what time alone does not bring."""
    field, made_by = _made_by(spec, pod)
    template = f"{field}.template"
    if not is_about_image(pod):
        if "subpath" in (pod.waiting or "").lower() and (folders := ", ".join(_folders(spec, pod))):
            return f"correct the folder that is not there ({folders}), or make it in its volume"
        return f"correct {template} (container {pod.waits}), or create what it names"
    overlay = made_by.template.get("spec") or {}
    laid = [*(overlay.get("initContainers") or []), *(overlay.get("containers") or [])]
    image = next((c.get("image") for c in laid if c["name"] == pod.waits), None)
    if image is not None:
        where = f"the image of container {pod.waits} in {template}"
    elif made_by.image is not None:
        where, image = f"{field}.image", made_by.image
    else:
        where, image = "spec.workers.image", spec.workers.image
    return (
        f"correct {where} ({image}), or name its registry's Secret under imagePullSecrets in "
        f"{template}.spec"
    )


def of_placement(spec: TrainingRunSpec, pod: PodView) -> str:
    """For a pod that finds no node: what it asks of one, and where that is said."""
    field, made_by = _made_by(spec, pod)
    resources = made_by.resources
    wanted = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    amounts = ", ".join(f"{name}: {amount}" for name, amount in wanted.items()) or "nothing"
    overlay = made_by.template.get("spec") or {}
    kept = [name for name in ("nodeSelector", "affinity", "tolerations") if overlay.get(name)]
    nodes = f" of nodes that fit {', '.join(kept)} in {field}.template" if kept else ""
    return f"each of {field}.nodes ({made_by.nodes}) asks for {amounts} ({field}.resources){nodes}"


def _folders(spec: TrainingRunSpec, pod: PodView) -> Iterator[str]:
    """Fields that name a folder in a volume that such a pod mounts, and what they say."""
    streams = {
        f"data.streams[{number}]": stream.persistent_volume_claim
        for number, stream in enumerate(spec.data.streams)
    }
    claims: dict[str, PersistentVolumeClaim | None] = {
        **streams,
        "checkpoint": spec.checkpoint.persistent_volume_claim,
        "export": spec.export.persistent_volume_claim if spec.export else None,
    }
    if pod.prepares and (prepare := spec.data.prepare) is not None:
        written = f"data.streams[{prepare.stream}]"
        claims = {
            "data.prepare": prepare.persistent_volume_claim,
            written: streams.get(written),
        }
    for field, claim in claims.items():
        if claim is not None and claim.sub_path:
            yield f"spec.{field}.persistentVolumeClaim.subPath: {claim.sub_path}"


def _made_by(spec: TrainingRunSpec, pod: PodView) -> tuple[str, Workers | Prepare]:
    """The part of the spec that such a pod is made by."""
    if pod.prepares and spec.data.prepare is not None:
        return "spec.data.prepare", spec.data.prepare
    return "spec.workers", spec.workers
