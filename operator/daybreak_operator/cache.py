"""What the watches have brought, by run. Filled by kopf's events, read by `observe`."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from daybreak_trainer.contract import LABEL_RUN

Key = tuple[str, str]
"""Namespace and name of a run."""
Body = Mapping[str, Any]


class Cache:
    def __init__(self) -> None:
        self.runs: dict[Key, Body] = {}
        self._children: dict[str, dict[Key, dict[str, Body]]] = {"Job": {}, "Pod": {}}

    def run_event(self, kind: str | None, body: Body) -> Key:
        """Notes a run's event and returns its key."""
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        if kind != "DELETED":
            self.runs[key] = body
        elif _uid(self.runs.get(key)) == _uid(body):
            del self.runs[key]
        return key

    def child_event(self, kind: str, event: str | None, body: Body) -> Key | None:
        """Notes a Job's or pod's event; returns the key of its run, if it names one."""
        metadata = body["metadata"]
        name = (metadata.get("labels") or {}).get(LABEL_RUN)
        if name is None:
            return None
        key = (metadata["namespace"], name)
        members = self._children[kind].setdefault(key, {})
        if event != "DELETED":
            members[metadata["name"]] = body
        elif _uid(members.get(metadata["name"])) == _uid(body):
            del members[metadata["name"]]
        if not members:
            del self._children[kind][key]
        return key

    def children(self, kind: str, key: Key) -> list[Body]:
        return list(self._children[kind].get(key, {}).values())

    def forget(self, kind: str, key: Key, gone: Container[str]) -> None:
        """Drops the children with these UIDs: a watch that starts anew tells of no deletion."""
        members = self._children[kind].get(key, {})
        for name in [name for name, body in members.items() if _uid(body) in gone]:
            del members[name]
        if not members:
            self._children[kind].pop(key, None)


def _uid(body: Body | None) -> str | None:
    """Of an object; events of an object and of its successor of the same name may change places."""
    return body["metadata"]["uid"] if body is not None else None
