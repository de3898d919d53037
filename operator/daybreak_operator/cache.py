"""What the watches have brought, by run. Filled by kopf's events, read by `observe`."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from daybreak_operator.observation import (
    COMPLETION_INDEX,
    JOB_NAME,
    LIMITS_HASH,
    WORKERS_HASH,
    owner_uid,
)
from daybreak_trainer.contract import LABEL_ATTEMPT, LABEL_ROLE, LABEL_RUN

Key = tuple[str, str]
"""Namespace and name of a run."""
Body = Mapping[str, Any]


_MAX_USED_NAMES = 100_000
_METADATA = ("name", "namespace", "uid", "deletionTimestamp", "ownerReferences")
_LABELS = (LABEL_RUN, LABEL_ATTEMPT, LABEL_ROLE, COMPLETION_INDEX, JOB_NAME)
_ANNOTATIONS = (COMPLETION_INDEX, WORKERS_HASH, LIMITS_HASH)
_SPEC = ("nodeName", "parallelism", "completions", "suspend")
"""What is read of Jobs and pods."""


class Cache:
    def __init__(self) -> None:
        self.runs: dict[Key, Body] = {}
        self._children: dict[str, dict[Key, dict[str, Body]]] = {"Job": {}, "Pod": {}}
        self._overwritten: dict[Key, set[str]] = {}
        """Versions that our own writes replaced, whose events may still be on their way."""
        self.used_names: dict[Key, None] = {}
        """Of runs that were there before this operator, or were deleted: an older run's pods may
        still be at work under such a name, and the watches have not told."""
        self._orphaned: set[Key] = set()
        """Of children that had no run when they were last swept."""
        self._last_words: dict[Key, dict[str, Body]] = {}
        """Pods that were deleted after they had ended and before their Job, by UID, until a Job of
        their run goes: they tell why the attempt ended, and a pod may be gone before anybody has
        looked."""

    def run_event(self, kind: str | None, body: Body) -> Key:
        """Notes a run's event and returns its key."""
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        if kind in (None, "DELETED") or _uid(self.runs.get(key, body)) != _uid(body):
            self.used_names[key] = None
            if len(self.used_names) > _MAX_USED_NAMES:
                del self.used_names[next(iter(self.used_names))]
        version = body["metadata"]["resourceVersion"]
        if kind != "DELETED":
            if version in self._overwritten.get(key, ()):
                return key  # late: what we wrote over it is known
            if _succeeds(self.runs.get(key), body):
                return key  # late: of a former run of that name
            self._overwritten.pop(key, None)
            self.runs[key] = slim(body)
        elif _uid(self.runs.get(key)) == _uid(body):
            del self.runs[key]
            self._overwritten.pop(key, None)
            self._last_words.pop(key, None)
        return key

    def gone(self, key: Key, uid: str) -> None:
        """The API server knows nothing of this run, and the watch has not told: it may never, where
        it was cut off for long."""
        if _uid(known := self.runs.get(key)) == uid and known is not None:
            self.run_event("DELETED", known)

    def name_is_free(self, key: Key) -> None:
        """The API server knows of nothing that was made under a run's name."""
        self.used_names.pop(key, None)

    def wrote(self, version: str, body: Body) -> None:
        """The run as the API server has it after a write to that version of it. Its event comes
        later; a look before that would do the same again, and be refused.

        What the watch has brought meanwhile stays: it may be newer than our write, and of that
        nobody would tell again.
        """
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        known = self.runs.get(key)
        if known is not None and known["metadata"]["resourceVersion"] == version:
            self.runs[key] = slim(body)
            self._overwritten.setdefault(key, set()).add(version)

    def child_event(self, kind: str, event: str | None, body: Body) -> Key | None:
        """Notes a Job's or pod's event; returns the key of its run, if it names one."""
        metadata = body["metadata"]
        name = (metadata.get("labels") or {}).get(LABEL_RUN)
        if name is None:
            return None
        key = (metadata["namespace"], name)
        members = self._children[kind].setdefault(key, {})
        if event == "DELETED":
            self._drop(kind, key, body)
        else:
            members[metadata["name"]] = slim_child(body)
        if not members:
            del self._children[kind][key]
        return key

    def children(self, kind: str, key: Key) -> list[Body]:
        """Those that exist, as far as the watches have told."""
        return list(self._children[kind].get(key, {}).values())

    def last_words(self, key: Key) -> list[Body]:
        """Pods that have ended and exist no more."""
        return list(self._last_words.get(key, {}).values())

    def forget(self, kind: str, key: Key, gone: Container[str]) -> None:
        """The children with these UIDs do not exist: a watch that starts anew tells of no
        deletion."""
        for body in [body for body in self.children(kind, key) if _uid(body) in gone]:
            self._drop(kind, key, body)
        if not self._children[kind].get(key, True):
            del self._children[kind][key]

    def sweep(self) -> None:
        """Forgets the Jobs and pods of runs that were gone at the last sweep too: their watch was
        cut when they went. Of one that is there after all it tells again, and a run of that name is
        taken for a successor."""
        orphaned = {key for kind in self._children.values() for key in kind} - self.runs.keys()
        for key in orphaned & self._orphaned:
            for children in self._children.values():
                children.pop(key, None)
            self._last_words.pop(key, None)
        self._orphaned = orphaned

    def _drop(self, kind: str, key: Key, body: Body) -> None:
        members, name = self._children[kind][key], body["metadata"]["name"]
        if _uid(members.get(name)) == _uid(body):
            del members[name]
        if kind == "Job":
            self._last_words.pop(key, None)
        elif (body.get("status") or {}).get("phase") in ("Succeeded", "Failed") and any(
            _uid(job) == owner_uid(body["metadata"]) for job in self.children("Job", key)
        ):
            self._last_words.setdefault(key, {})[body["metadata"]["uid"]] = slim_child(body)


def slim(run: Body) -> Body:
    """Without the managers of fields, which are not read."""
    metadata = {key: value for key, value in run["metadata"].items() if key != "managedFields"}
    return {**run, "metadata": metadata}


def slim_child(body: Body) -> Body:
    """Of a Job or pod what is read: not its template, nor a pod's spec but for its node. With
    thousands of pods the rest would be most of the operator's memory, and as large as users make
    the labels and annotations of theirs."""
    metadata, spec = body["metadata"], body.get("spec") or {}
    slimmed = {key: metadata[key] for key in _METADATA if key in metadata}
    for field, names in (("labels", _LABELS), ("annotations", _ANNOTATIONS)):
        if given := metadata.get(field):
            slimmed[field] = {name: given[name] for name in names if name in given}
    kept = {key: spec[key] for key in _SPEC if key in spec}
    return {**body, "metadata": slimmed, "spec": kept}


def _succeeds(known: Body | None, body: Body) -> bool:
    """Whether the known run is a later one of the same name. kopf hands on the events of an object
    in their order, and those of two objects in any. Versions of a kind are numbers that grow."""
    if known is None or _uid(known) == _uid(body):
        return False
    later, former = (str(run["metadata"]["resourceVersion"]) for run in (known, body))
    return later.isdecimal() and former.isdecimal() and int(later) > int(former)


def _uid(body: Body | None) -> str | None:
    """Of an object; events of an object and of its successor of the same name may change places."""
    return body["metadata"]["uid"] if body is not None else None
