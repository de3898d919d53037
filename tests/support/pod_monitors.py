"""What the Prometheus operator makes of the chart's PodMonitors, for a Prometheus without it.

Debian's Prometheus is built without the discovery of Kubernetes. So `Pods` tells it of the pods
over HTTP, with the labels that this discovery would give them; what of them is scraped, and which
labels the series get, is left to Prometheus and the configuration made here.
"""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self

from kubernetes.client import ApiClient, CoreV1Api

Json = dict[str, Any]


class Pods:
    """Answers a GET with one target for each port of each pod that has an address."""

    def __init__(self, api: ApiClient) -> None:
        core = CoreV1Api(api)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                pods = core.list_pod_for_all_namespaces(_preload_content=False).json()["items"]
                body = json.dumps([target for pod in pods for target in _targets(pod)]).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Prometheus asks every second."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _targets(pod: Json) -> list[Json]:
    metadata, address = pod["metadata"], pod["status"].get("podIP")
    if not address:
        return []
    about = {
        "namespace": metadata["namespace"],
        "pod_name": metadata["name"],
        "pod_phase": pod["status"]["phase"],
    }
    for name, value in metadata.get("labels", {}).items():
        about |= {f"pod_label_{_plain(name)}": value, f"pod_labelpresent_{_plain(name)}": "true"}
    return [
        {
            "targets": [f"{address}:{port['containerPort']}"],
            "labels": {
                f"__meta_kubernetes_{name}": value
                for name, value in {**about, "pod_container_port_name": port["name"]}.items()
            },
        }
        for container in pod["spec"]["containers"]
        for port in container.get("ports", ())
    ]


def scrape_config(pod_monitor: Json, pods_url: str, interval: str) -> Json:
    """The configuration for a PodMonitor with one endpoint."""
    metadata, spec = pod_monitor["metadata"], pod_monitor["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    everywhere = spec.get("namespaceSelector", {}).get("any", False)
    return {
        "job_name": f"podMonitor/{metadata['namespace']}/{metadata['name']}/0",
        "scrape_interval": interval,
        "scrape_timeout": interval,
        "honor_labels": endpoint.get("honorLabels", False),
        "metrics_path": endpoint["path"],
        "sample_limit": spec.get("sampleLimit", 0),
        "http_sd_configs": [{"url": pods_url, "refresh_interval": "1s"}],
        "relabel_configs": [
            *([] if everywhere else [_keep("namespace", metadata["namespace"])]),
            _keep("pod_phase", "Pending|Running|Unknown"),
            *_selected(spec["selector"]),
            _keep("pod_container_port_name", endpoint["port"]),
            {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
            {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
            *(
                {_snake_case(key): value for key, value in relabeling.items()}
                for relabeling in endpoint.get("relabelings", ())
            ),
        ],
    }


def _selected(selector: Json) -> list[Json]:
    expressions = selector.get("matchExpressions", ())
    assert all(expression["operator"] == "Exists" for expression in expressions), expressions
    return [
        *(
            _keep(f"pod_label_{_plain(name)}", re.escape(value))
            for name, value in selector.get("matchLabels", {}).items()
        ),
        *(_keep(f"pod_labelpresent_{_plain(item['key'])}", "true") for item in expressions),
    ]


def _keep(label: str, regex: str) -> Json:
    return {"action": "keep", "source_labels": [f"__meta_kubernetes_{label}"], "regex": regex}


def _plain(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


def _snake_case(name: str) -> str:
    return re.sub(r"[A-Z]", lambda capital: f"_{capital[0].lower()}", name)
