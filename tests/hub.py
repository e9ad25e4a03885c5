"""A stand-in of the Hugging Face hub on loopback: the requests by which its libraries read a repository, and no others.

    with Hub(folder) as hub: ...  # a process with HF_ENDPOINT=hub.url and an empty HF_HOME finds what lies in folder
    python tests/hub.py FOLDER 8000

`models/OWNER/NAME` and `datasets/OWNER/NAME` in the folder are repositories of one commit each, its branch `main`: the
one that a file `.commit` names (for a revision that a configuration pins), else a hash of the content. `hub.fault` says what
goes wrong with an answer; `hub.end()` is the end of the hub, whoever is still connected.
"""

import hashlib
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

COMMIT_FILE = ".commit"


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


class Fault(NamedTuple):
    """What goes wrong with one answer: its status, the seconds before it comes, the share of its body that comes."""

    status: int | None = None
    headers: Mapping[str, str] = MappingProxyType({})
    seconds: float = 0.0
    share: float = 1.0


def as_json(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def missing(what: str) -> Answer:
    """By this header the libraries tell a wrong name from a wrong revision and from a file that is not there."""
    return Answer(404, what.encode(), {"X-Error-Code": what})


@dataclass(frozen=True)
class Repository:
    """One folder of files, and what the hub says of it."""

    folder: Path
    name: str

    def describe(self, path: str, deep: bool) -> Answer:
        """The whole: above all, which commit the revision is."""
        files = [{"rfilename": self._entry(file)["path"]} for file in self._files()]
        return as_json({"id": self.name, "sha": self.commit(), "private": False, "tags": [], "siblings": files})

    def tree(self, path: str, deep: bool) -> Answer:
        """What is in a folder, where it is `deep` below it too."""
        folder = self.folder / path
        if not folder.is_dir():
            return missing("EntryNotFound")
        found = folder.rglob("*") if deep else folder.iterdir()
        return as_json([self._entry(file) for file in sorted(found) if file.name != COMMIT_FILE])

    def content(self, path: str, deep: bool) -> Answer:
        """A file's bytes, and the commit that they belong to."""
        file = self.folder / path
        if file not in self._files():
            return missing("EntryNotFound")
        return Answer(200, file.read_bytes(), {"ETag": f'"{_blob(file)}"', "X-Repo-Commit": self.commit()})

    def commit(self) -> str:
        named = self.folder / COMMIT_FILE
        content = json.dumps([self._entry(file) for file in self._files()])
        return named.read_text().strip() if named.is_file() else hashlib.sha1(content.encode()).hexdigest()

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name != COMMIT_FILE)

    def _entry(self, path: Path) -> dict[str, Any]:
        kind, size, oid = ("file", path.stat().st_size, _blob(path)) if path.is_file() else ("directory", 0, "0" * 40)
        return {"type": kind, "path": path.relative_to(self.folder).as_posix(), "size": size, "oid": oid}


def _blob(path: Path) -> str:
    """Git's name of a file's content."""
    data = path.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


Respond = Callable[[Repository, str, bool], Answer]
OF = r"(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
AT = r"(?P<revision>[^/]+)"
ROUTES: tuple[tuple[str, Respond], ...] = (
    (rf"/api/{OF}(?:/revision/{AT})?", Repository.describe),
    (rf"/api/{OF}/tree/{AT}(?:/(?P<path>.+))?", Repository.tree),
    (rf"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/{AT}/(?P<path>.+)", Repository.content),
)


class Hub(ThreadingHTTPServer):
    """Serves a folder while the `with` lasts; `requests` is what was asked for, each as `GET /api/models/OWNER/NAME`, and
    `fault` is asked with each what goes wrong."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_port}"
        self.requests: list[str] = []
        self.fault: Callable[[str], Fault] = lambda request: Fault()
        self.over = False

    def __enter__(self) -> Self:
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Nothing connects any more, and connections that are open get no answer."""
        if not self.over:
            self.over = True
            self.shutdown()
            self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that waited no longer is none of the hub's errors."""

    def answer(self, method: str, path: str, deep: bool) -> Answer:
        self.requests.append(f"{method} {path}")
        for pattern, respond in ROUTES:
            if match := re.fullmatch(pattern, path):
                given = {key: unquote(value) for key, value in match.groupdict().items() if value}
                repository = Repository(self.folder / given.get("kind", "models") / given["name"], given["name"])
                if not repository.folder.is_dir():
                    return missing("RepoNotFound")
                if given.get("revision", "main") not in ("main", repository.commit()):
                    return missing("RevisionNotFound")
                return respond(repository, given.get("path", ""), deep)
        return missing("no such route")


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        target = urlsplit(self.path)
        answer = self.server.answer(self.command, target.path, "recursive=true" in target.query.lower())
        fault = self.server.fault(f"{self.command} {target.path}")
        time.sleep(fault.seconds)
        if self.server.over:
            self.close_connection = True
            return
        if fault.status:
            answer = Answer(fault.status, b"", dict(fault.headers))
        answer = self._part(answer)
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: int(len(answer.body) * fault.share)])
            self.close_connection = fault.share < 1

    def _part(self, answer: Answer) -> Answer:
        """What was asked for of a file that is fetched from where an earlier try ended."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted or answer.status != 200:
            return answer
        first, last = int(wanted[1]), min(int(wanted[2] or len(answer.body) - 1), len(answer.body) - 1)
        place = {"Content-Range": f"bytes {first}-{last}/{len(answer.body)}"}
        return Answer(206, answer.body[first : last + 1], {**answer.headers, **place})

    do_HEAD = do_GET  # noqa: N815 (the library's names)

    def log_message(self, *_: object) -> None:
        """Hub.requests is the log."""


if __name__ == "__main__":
    with Hub(Path(sys.argv[1]), int(sys.argv[2])) as hub:
        print(f"HF_ENDPOINT={hub.url}", flush=True)
        signal.pause()
