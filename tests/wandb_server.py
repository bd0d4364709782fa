"""A stand-in for a W&B server: takes what ``wandb sync`` and ``wandb-workspaces`` send, and keeps it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

KEY = "0123456789" * 4
ENTITY = "somebody"


@dataclass
class Server:
    """What was received: GraphQL operations with their variables, history and summary by run, uploaded files."""

    address: str = ""
    operations: list[tuple[str, dict]] = field(default_factory=list)
    streams: dict[str, list[dict]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What makes W&B's programs talk to it."""
        return {
            "WANDB_BASE_URL": self.address,
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
        }

    def named(self, operation: str) -> list[dict]:
        """The variables of each call of an operation."""
        return [variables for name, variables in self.operations if name == operation]

    def lines(self, run: str, name: str) -> list[dict]:
        """The lines of a run's file, such as its history."""
        found = []
        for part in self.streams.get(run, ()):
            chunk = part.get("files", {}).get(name, {})
            found += [json.loads(line) for line in chunk.get("content", ())]
        return found

    def answer(self, operation: str, variables: dict) -> Any:
        """What a server would say."""
        self.operations.append((operation, variables))
        project = {
            "id": "p",
            "name": variables.get("project"),
            "entity": {"id": "e", "name": ENTITY},
        }
        bucket = {"id": variables.get("name"), "name": variables.get("name"), "project": project}
        viewer = {
            "id": "v",
            "entity": ENTITY,
            "username": ENTITY,
            "flags": "{}",
            "teams": {"edges": []},
        }
        files = [
            {"name": name, "uploadUrl": f"{self.address}/upload/{name}"}
            for name in variables.get("files") or ()
        ]
        artifact = {
            "id": "a",
            "state": "COMMITTED",
            "artifactSequence": {"latestArtifact": {"id": "a"}},
        }
        view = {
            "id": "view",
            "name": variables.get("name"),
            "type": "runs",
            "spec": variables.get("spec"),
        }
        view |= {"displayName": variables.get("displayName"), "description": ""}
        view["project"] = {"id": "p", "name": variables.get("projectName"), "entityName": ENTITY}
        view |= {
            "user": None,
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
        }
        pages = {"endCursor": None, "hasNextPage": False}
        return {
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None},
            "createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files},
            "createArtifact": {"artifact": artifact},
            "viewer": viewer,
            "models": {"edges": [], "pageInfo": pages},
            "upsertModel": {"model": project, "project": project, "inserted": True},
            "upsertView": {"view": view, "inserted": True},
        }


@contextmanager
def standing_in() -> Iterator[Server]:
    """A server on a free port."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                found = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            else:
                found = b""
                while size := int(self.rfile.readline(), 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            return (
                gzip.decompress(found) if self.headers.get("Content-Encoding") == "gzip" else found
            )

        def do_POST(self) -> None:
            body, said = self.body(), {}
            if self.path.startswith("/graphql"):
                asked = json.loads(body)
                name = asked.get("operationName") or asked["query"].split("(")[0].split()[-1]
                said = {"data": server.answer(name, asked.get("variables") or {})}
            elif self.path.endswith("/file_stream"):
                run = self.path.split("/")[-2]
                server.streams.setdefault(run, []).append(json.loads(body))
            elif self.path.startswith("/upload/"):
                server.files.append(self.path.removeprefix("/upload/"))
            text = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST

        def log_message(self, *arguments: Any) -> None:
            pass

    class Listening(ThreadingHTTPServer):
        def handle_error(self, *arguments: Any) -> None:
            """Say nothing: W&B's program ends its connections as it likes."""

    listening = Listening(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{listening.server_address[1]}"
    Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
