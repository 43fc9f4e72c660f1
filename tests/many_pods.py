"""A list of very many pods of about 11 KB each, page by page as an API server gives it: `python -m tests.many_pods PORT COUNT`."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

NAMESPACES, OWNERS = 40, 1000


def _address(number: int) -> str:
    return f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"


def pod(number: int) -> dict[str, Any]:
    """As a cluster with an injector and a mesh has them: most of it is of no use here."""
    fields: dict[str, Any] = {f"f:field-{part}": {".": {}, "f:name": {}, "f:value": {}} for part in range(60)}
    environment: list[dict[str, Any]] = [
        {"name": f"SETTING_{part}", "value": f"value {part} of a setting"} for part in range(40)
    ]
    environment.append({"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "web-db", "key": "password"}}})
    containers = [
        {"name": name, "image": f"registry.example.com/shop/{name}@sha256:{number:064x}", "env": environment}
        for name in ("app", "agent")
    ]
    return {
        "metadata": {
            "uid": f"00000000-0000-4000-8000-{number:012}",
            "name": f"web-{number}",
            "namespace": f"shop-{number % NAMESPACES}",
            "resourceVersion": str(1000 + number),
            "creationTimestamp": "2026-11-03T12:00:00Z",
            "labels": {"app.kubernetes.io/name": "web"},
            "annotations": {"vault.hashicorp.com/role": "web", "checksum/config": f"{number:064x}"},
            "ownerReferences": [
                {
                    "kind": "ReplicaSet",
                    "name": f"web-{number % OWNERS}",
                    "uid": f"rs-{number % OWNERS}",
                    "controller": True,
                }
            ],
            "managedFields": [{"manager": "kube-controller-manager", "fieldsV1": fields}],
        },
        "spec": {"serviceAccountName": "web", "nodeName": f"node-{number % 200}", "containers": containers},
        "status": {
            "phase": "Running",
            "startTime": "2026-11-03T12:00:01Z",
            "podIPs": [{"ip": _address(number)}],
            "conditions": [{"type": f"Condition{part}", "status": "True", "reason": "x" * 80} for part in range(8)],
        },
    }


# made once: the server must not be what is measured
_TEMPLATE = json.dumps(pod(987_654_321))


def encoded(number: int) -> str:
    return _TEMPLATE.replace("987654321", str(number)).replace(_address(987_654_321), _address(number))


def handler(count: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            first, limit = int(query.get("continue", ["0"])[0]), int(query["limit"][0])
            end = min(first + limit, count)
            metadata = {"resourceVersion": "999999", **({"continue": str(end)} if end < count else {})}
            items = ",".join(encoded(number) for number in range(first, end))
            body = f'{{"kind": "PodList", "metadata": {json.dumps(metadata)}, "items": [{items}]}}'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), handler(int(sys.argv[2]))).serve_forever()
