"""A client of the YAML language server, which editors run: opens files, asks, hears mistakes."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest

_PROGRAM = "node_modules/yaml-language-server/bin/yaml-language-server"
_SETTINGS = {"validate": True, "hover": True, "completion": True, "schemaStore": {"enable": False}}


def program():
    """Return the command that starts the server; skip where it is not installed."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js, which is not installed")
    path = Path(__file__).parent / _PROGRAM
    if not path.is_file():
        pytest.skip("the language server is not installed: npm ci --prefix tests/editor")
    return ["node", str(path), "--stdio"]


class LanguageServer:
    """The server for one folder, over its standard streams."""

    def __init__(self, folder):
        self.folder, self.numbers, self.mistakes = folder, itertools.count(1), {}
        self.process = subprocess.Popen(
            program(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        place = {"uri": folder.as_uri(), "name": folder.name}
        about = {"processId": None, "rootUri": place["uri"], "workspaceFolders": [place]}
        self.ask("initialize", {**about, "capabilities": {"textDocument": {"completion": {}}}})
        self.tell("initialized", {})

    def _write(self, message):
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(content) + content)
        self.process.stdin.flush()

    def _read(self):
        """Return the next message; note mistakes, and answer what the server asks."""
        length = 0
        while header := self.process.stdout.readline().strip():
            name, _, value = header.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        assert length, "the language server has ended"
        message = json.loads(self.process.stdout.read(length))
        if message.get("method") == "textDocument/publishDiagnostics":
            found = message["params"]
            self.mistakes[found["uri"]] = [
                (one["range"]["start"]["line"] + 1, one["message"]) for one in found["diagnostics"]
            ]
        elif message.get("method") == "workspace/configuration":
            items = message["params"]["items"]
            wanted = [_SETTINGS if one.get("section") == "yaml" else {} for one in items]
            self._write({"id": message["id"], "result": wanted})
        elif "method" in message and "id" in message:
            self._write({"id": message["id"], "result": None})
        return message

    def tell(self, method, params):
        self._write({"method": method, "params": params})

    def ask(self, method, params):
        number = next(self.numbers)
        self._write({"id": number, "method": method, "params": params})
        while True:
            message = self._read()
            if message.get("id") == number and "method" not in message:
                return message["result"]

    def open(self, name, text):
        uri = (self.folder / name).as_uri()
        self.mistakes.pop(uri, None)
        document = {"uri": uri, "languageId": "yaml", "version": 1, "text": text}
        self.tell("textDocument/didOpen", {"textDocument": document})
        return uri

    def mistakes_in(self, name, text):
        """Return the lines that an editor underlines, each with its message."""
        uri = self.open(name, text)
        while uri not in self.mistakes:
            self._read()
        return self.mistakes[uri]

    def at_cursor(self, what, name, text):
        """Ask for completion or hover where the text has a `|`, which is taken out."""
        before, _, after = text.partition("|")
        uri = self.open(name, before + after)
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        where = {"textDocument": {"uri": uri}, "position": {"line": line, "character": column}}
        return self.ask(f"textDocument/{what}", where)

    def offered(self, name, text):
        found = self.at_cursor("completion", name, text)
        return [one["label"] for one in (found["items"] if isinstance(found, dict) else found)]

    def close(self):
        self.process.kill()
        self.process.communicate()
