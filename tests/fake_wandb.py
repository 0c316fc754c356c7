"""A W&B server on 127.0.0.1 that keeps what it is sent: as much of one as a run with metrics and pictures needs."""

import gzip
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote

ENTITY = "tester"
ENTITY_NODE = {"id": "e1", "name": ENTITY}
VIEWER = {"id": "u1", "username": ENTITY, "entity": ENTITY, "flags": "{}", "teams": {"edges": []}}


class Server(ThreadingHTTPServer):
    """Says nothing of clients that hang up, as a wandb that gave up does."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None: ...


class FakeWandb:
    """Use as a context; `runs` has history, config and end of each by its id, `files` what was uploaded: run/name."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.bodies: list[bytes] = []  # of all requests, after their addresses and headers
        self.views: dict[str, dict[str, Any]] = {}  # saved pages by id
        self.down = False  # answers 500 to all
        self.refuses = 0  # or this status
        self.hangs = False  # answers nothing
        self.gone = False  # hangs up
        self.swallows = False  # says yes to rows, and keeps none
        self.loses_pictures = False  # the same of pictures
        self.slow_s = 0.0  # before each answer
        self._http = Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hangs = False
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                server.bodies.append(f"{self.path}\n{self.headers}\n".encode() + body)
                time.sleep(server.slow_s)
                while server.hangs:
                    time.sleep(0.05)
                if server.gone:
                    self.close_connection = True
                    return
                status = 500 if server.down else server.refuses or 200
                reply = json.dumps(server.respond(self.path, body) if status == 200 else {}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *_: object) -> None: ...

        return Handler

    def respond(self, path: str, body: bytes) -> Any:
        """The answer to one request."""
        if path == "/graphql":
            query = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
            answer = getattr(self, f"_{name[1]}", None) if name else None
            return {"data": answer(query.get("variables") or {})} if answer else {"errors": [{"message": "unknown"}]}
        if path.startswith("/storage/") and self.loses_pictures and "/media/" in path:
            return {}
        if path.startswith("/storage/"):
            self.files[unquote(path.removeprefix("/storage/"))] = body
        elif path.endswith("/file_stream"):
            self._stream(self.runs[path.split("/")[-2]], json.loads(body))
        return {}

    def files_of(self, run: str) -> dict[str, bytes]:
        """What was uploaded of a run."""
        return {key.removeprefix(f"{run}/"): body for key, body in self.files.items() if key.startswith(f"{run}/")}

    def _stream(self, run: dict[str, Any], body: dict[str, Any]) -> None:
        files = body.get("files", {})
        history, summary = files.get("wandb-history.jsonl"), files.get("wandb-summary.json")
        if self.swallows:
            return
        if summary:
            run["summary"] = json.loads(summary["content"][-1])
        if history:
            run["history"][history["offset"] :] = [json.loads(line) for line in history["content"]]
        if body.get("complete"):
            run["exit_code"] = body["exitcode"]
        run["preempting"] |= bool(body.get("preempting"))

    def _Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": VIEWER}

    def _ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _RunStoppedStatus(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"run": {"stopped": False}}}

    def _RunResumeStatus(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(asked["name"])
        bucket = run and {
            "id": asked["name"],
            "name": asked["name"],
            "summaryMetrics": json.dumps(run["summary"]),
            "displayName": run["displayName"],
            "logLineCount": 0,
            "historyLineCount": len(run["history"]),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]),
            "eventsTail": "[]",
            "config": json.dumps(run["config"]),
            "tags": run.get("tags") or [],
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {
            "model": {"id": "p1", "name": asked["project"], "entity": {"id": "e1", "name": ENTITY}, "bucket": bucket}
        }

    def _Runs(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What the public API asks: all runs of a group, in one page; a project without runs is not there."""
        if not self.runs:
            return {"project": None}
        group = json.loads(asked["filters"] or "{}").get("group")
        nodes = [self._node(name) for name, run in list(self.runs.items()) if run.get("groupName") == group]
        edges = [{"node": node, "cursor": node["name"]} for node in nodes]
        return {
            "project": {
                "internalId": "1",
                "runCount": len(nodes),
                "readOnly": False,
                "runs": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}},
            }
        }

    def _Run(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"internalId": "1", "run": self._node(asked["name"])}}

    def _node(self, name: str) -> dict[str, Any]:
        """A run as the public API shows it."""
        run = self.runs[name]
        return {
            "id": name,
            "name": name,
            "displayName": run.get("displayName"),
            "state": "finished" if "exit_code" in run else "running",
            "group": run.get("groupName"),
            "jobType": run.get("jobType"),
            "tags": run.get("tags") or [],
            "config": json.dumps(run["config"]),
            "summaryMetrics": json.dumps(run["summary"]),
            "systemMetrics": "{}",
            "historyLineCount": len(run["history"]),
            "projectId": "1",
            "user": {"name": ENTITY, "username": ENTITY},
        }

    def _RunFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        wanted, start = asked["fileNames"], (asked.get("pattern") or "%").removesuffix("%")
        names = [
            name for name in self.files_of(asked["name"]) if name in wanted or (not wanted and name.startswith(start))
        ]
        edges = [{"node": {"id": name, "name": name, "sizeBytes": 1}, "cursor": name} for name in names]
        files = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
        return {"project": {"internalId": "1", "run": {"fileCount": len(names), "files": files}}}

    def _GetDefaultEntity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": VIEWER}

    def _UpsertBucket(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked.get("name") or asked["id"]
        run = self.runs.setdefault(name, {"history": [], "config": {}, "summary": {}, "preempting": False})
        run["config"].update(json.loads(asked.get("config") or "{}"))
        run.update({key: asked[key] for key in ("displayName", "groupName", "jobType", "tags") if asked.get(key)})
        bucket = {
            "id": name,
            "name": name,
            "displayName": run.get("displayName"),
            "config": json.dumps(run["config"]),
            "historyLineCount": len(run["history"]),
            "project": {"id": "p1", "name": asked.get("project"), "entity": ENTITY_NODE},
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _CreateRunFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{asked['run']}/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def _View(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked.get("viewName") or asked["view"]  # wandb-workspaces' word, and ours
        found = [{"node": view} for view in self.views.values() if view["name"] == name]
        return {"project": {"allViews": {"edges": found}}}

    def _UpsertView2(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One id is one page; without an id there is a new one, whatever its name."""
        view = self.views.setdefault(asked.get("id") or f"v{len(self.views)}", {})
        view.update(asked, id=next(id_ for id_, each in self.views.items() if each is view))
        return {"upsertView": {"view": {"id": view["id"], "name": view["name"]}, "inserted": True}}
