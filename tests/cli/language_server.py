"""A client of the YAML language server."""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PROGRAM = ROOT / ".cache" / "npm" / "node_modules" / "yaml-language-server" / "bin" / "yaml-language-server"
WAIT_S = 60.0


class LanguageServer:
    """A running server with one open document.

    Args:
        schema: The schema of every YAML file.
        folder: Where the document is.
    """

    def __init__(self, schema: Path, folder: Path) -> None:
        assert PROGRAM.exists(), "yaml-language-server is not installed; scripts/test installs it"
        self._process = subprocess.Popen(
            ["node", str(PROGRAM), "--stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={**os.environ, "NODE_OPTIONS": "--no-warnings"},
        )
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._numbers = itertools.count(1)
        self._settings = {
            "yaml": {
                "schemas": {schema.as_uri(): "*.yaml"},
                "completion": True,
                "hover": True,
                "validate": True,
                "schemaStore": {"enable": False},
            }
        }
        self._folder = folder
        self._uri = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        abilities = {"workspace": {"configuration": True}}
        self._ask("initialize", {"processId": os.getpid(), "rootUri": folder.as_uri(), "capabilities": abilities})
        self._tell("initialized", {})
        self._tell("workspace/didChangeConfiguration", {"settings": self._settings})

    def close(self) -> None:
        """Stop the server."""
        self._process.kill()
        self._process.wait(10)
        self._reader.join(10)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def open(self, text: str) -> list[dict[str, Any]]:
        """Open a document with a text and wait for its diagnostics."""
        # A new document each time, so that late diagnostics of the previous one are not mistaken for this one's.
        self._uri = (self._folder / f"datasource{next(self._numbers)}.yaml").as_uri()
        document = {"uri": self._uri, "languageId": "yaml", "version": 1, "text": text}
        self._tell("textDocument/didOpen", {"textDocument": document})
        while True:
            message = self._next()
            if message.get("method") == "textDocument/publishDiagnostics" and message["params"]["uri"] == self._uri:
                found: list[dict[str, Any]] = message["params"]["diagnostics"]
                return found

    def complete(self, line: int, column: int) -> dict[str, dict[str, Any]]:
        """The completions at a position, by label."""
        answer = self._ask("textDocument/completion", self._at(line, column))
        items = answer["items"] if isinstance(answer, dict) else answer
        return {item["label"]: item for item in items}

    def hover(self, line: int, column: int) -> str:
        """The hover text at a position."""
        answer = self._ask("textDocument/hover", self._at(line, column))
        return answer["contents"]["value"] if answer else ""

    def _at(self, line: int, column: int) -> dict[str, Any]:
        return {"textDocument": {"uri": self._uri}, "position": {"line": line, "character": column}}

    def _ask(self, method: str, params: Any) -> Any:
        number = next(self._numbers)
        self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        while True:
            message = self._next()
            if message.get("id") == number and "method" not in message:
                assert "error" not in message, message
                return message["result"]

    def _tell(self, method: str, params: Any) -> None:
        self._send({"jsonrpc": "2.0", "method": method, "params": params})

    def _next(self) -> dict[str, Any]:
        message = self._messages.get(timeout=WAIT_S)
        if "id" in message and "method" in message:
            self._answer(message)
        return message

    def _answer(self, message: dict[str, Any]) -> None:
        result: Any = None
        if message["method"] == "workspace/configuration":
            result = [self._settings.get(item.get("section"), {}) for item in message["params"]["items"]]
        self._send({"jsonrpc": "2.0", "id": message["id"], "result": result})

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        body = json.dumps(message).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while header := self._process.stdout.readline():
            length = int(header.split(b":")[1])
            while self._process.stdout.readline().strip():
                pass
            self._messages.put(json.loads(self._process.stdout.read(length)))
