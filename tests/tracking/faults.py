"""A tracking server that misbehaves, and the processes that have to live with it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from pipeline.stages.publish import LONGEST
from tests.tracking.conftest import Project, environment

Answer = Callable[["Handler"], None]

# phases of training, some seconds each: prints what they took longer
TRAIN = """
import sys, time
from pipeline.tracking.live import Live
phases, seconds = int(sys.argv[1]), float(sys.argv[2])
start = time.monotonic()
for number in range(phases):
    with Live(f"phase {number}", {"phase": "head"}, {"lr": "0.1"}, after=0) as followed:
        end = time.monotonic() + seconds
        step = 0
        while time.monotonic() < end:
            step += 1
            followed.log(step, {"train/loss": 1.0 / step})
            time.sleep(0.05)
print(time.monotonic() - start - phases * seconds)
"""
PUBLISH = """
import json, sys
from pipeline.params import Params
from pipeline.stages import publish as stage
stage.LONGEST = float(sys.argv[2])
stage.publish(Params.model_validate(json.loads(sys.argv[1])))
"""


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the server's answer."""

    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(60)

    def handle_any(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.answer(self)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def reply(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


class FaultyServer(ThreadingHTTPServer):
    """Answers on loopback as it is told to."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked = answer, list[str]()

    def handle_error(self, *arguments: Any) -> None:
        """A client that has given up is what is wanted."""

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(answer: Answer) -> Iterator[FaultyServer]:
    with FaultyServer(answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def hung(handler: Handler) -> None:
    time.sleep(600)


def failing(handler: Handler) -> None:
    handler.reply(500, b"<html>it broke\n\nbadly</html>")


def login(handler: Handler) -> None:
    handler.reply(401, b"You are not authenticated.", WWW_Authenticate="Basic realm=mlflow")


def busy(handler: Handler) -> None:
    """An hour's patience is asked for."""
    handler.reply(503, b"{}", Retry_After="3600")


def echoing(handler: Handler) -> None:
    """A proxy's page for its own developers: the request's headers, in the answer."""
    handler.reply(400, str(handler.headers).replace("\n", " ").encode())


def trickling(handler: Handler) -> None:
    """A byte now and then: no single read ever takes too long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.3)


@dataclass
class Forward:
    """Hands requests on to a real server; ``around`` may do so late, or not at all."""

    to: str
    around: Callable[[Handler, Callable[[], None]], None]
    threads: list[Any] = field(default_factory=list)

    def __call__(self, handler: Handler) -> None:
        self.around(handler, lambda: self.forward(handler))

    def forward(self, handler: Handler) -> None:
        handler.reply(*self.ask(handler))

    def ask(self, handler: Handler) -> tuple[int, bytes]:
        """Ask the real server: status and body."""
        place = urlsplit(self.to)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        headers = {
            name: handler.headers[name]
            for name in ("Content-Type", "User-Agent")
            if handler.headers[name]
        }
        connection.request(handler.command, handler.path, handler.body, headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body


@dataclass
class Ended:
    """What a process left: status, output, and the seconds it took."""

    status: int
    out: str
    err: str
    seconds: float


def start(code: str, folder: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment() | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> Ended:
    begun = time.monotonic()
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
        process.wait()
    return Ended(process.returncode, out, err, time.monotonic() - begun)


def train(project: Project, phases: int = 1, seconds: float = 0.5, **more: str) -> Ended:
    """Train some phases in a process of its own."""
    return finish(start(TRAIN, project.root, str(phases), str(seconds), **more))


def asked(project: Project, longest: float = LONGEST) -> list[str]:
    """What ``PUBLISH`` is told."""
    return [json.dumps(project.params.model_dump(by_alias=True)), str(longest)]


def publish(project: Project, longest: float = LONGEST, **more: str) -> Ended:
    """The stage ``publish`` in a process of its own."""
    return finish(start(PUBLISH, project.root, *asked(project, longest), **more))


def followers(root: Path) -> list[psutil.Process]:
    """The processes that follow phases of a project."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if "pipeline.tracking.follower" in command and str(root) in command:
            found.append(process)
    return found


def no_follower_within(root: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while found := followers(root):
        if time.monotonic() > end:
            for process in found:
                process.kill()
            return False
        time.sleep(0.05)
    return True
