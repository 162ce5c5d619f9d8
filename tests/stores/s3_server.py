"""An S3 server on 127.0.0.1 that says what it was asked, and fails when it is told to."""

import asyncio
import logging
import threading
import time
from contextlib import closing, nullcontext
from functools import cache
from itertools import count
from urllib.parse import urlencode

import boto3
from moto.moto_server.werkzeug_app import create_backend_app
from moto.server import ThreadedMotoServer

CREDENTIALS = {"access_key_id": "AKIDTEST", "secret_access_key": "PSSWD", "region": "us-east-1"}
_names = count()


class Server:
    """A running server. `asked` are the requests since it was cleared, as method and path; `sent` and `given` are the
    bytes of all that it was sent and that it gave. It answers each request after `delay` seconds, with `app`; all of
    `moto` is that which looks for the service first.
    """

    def __init__(self):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.asked = []
        self.sent = self.given = 0
        self.delay = 0.0
        self._faults = []
        self._put = threading.Lock()  # moto looks at a condition, and writes later: S3 does both in one
        self.moto = self._server._server.app
        self.app = create_backend_app("s3")  # to find out that a request is for S3 takes moto a third of its time
        self._server._server.app = self._answer
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=CREDENTIALS["access_key_id"],
            aws_secret_access_key=CREDENTIALS["secret_access_key"],
            region_name=CREDENTIALS["region"],
        )

    def bucket(self):
        """Return the name of a new, empty bucket."""
        name = f"sagaz-{next(_names)}"
        self.client.create_bucket(Bucket=name)
        self.asked.clear()
        return name

    def url(self, bucket, **options):
        """Return the URL of a store in the bucket."""
        asked = {**CREDENTIALS, "endpoint": self.endpoint, "allow_http": "true", **options}
        return f"s3://{bucket}/a/prefix?{urlencode(asked)}"

    def fail(self, status, times=1, *, part="", method="", done=False):
        """Answer the next requests of the method, whose path has the part, with the status; `done`: but do them."""
        self._faults += [(status, part, method, done)] * times

    def _answer(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path))
        if self.delay:
            time.sleep(self.delay)
        self.sent += int(environ.get("CONTENT_LENGTH") or 0)
        for fault in self._faults:
            status, part, wanted, done = fault
            if part in path and wanted in ("", method):
                self._faults.remove(fault)
                if done:
                    for _ in self.app(environ, lambda *answer: None):
                        pass
                else:
                    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(status, [("Content-Type", "application/xml"), ("Content-Length", "0")])
                return [b""]
        with self._put if method == "PUT" else nullcontext(), closing(self.app(environ, start_response)) as answer:
            parts = list(answer)
        self.given += sum(map(len, parts))
        return parts

    def forget_faults(self):
        self._faults.clear()

    def stop(self):
        self.client.close()
        self._server.stop()


@cache
def running():
    """Return this process's server, started by the first call."""
    return Server()


class Trips:
    """Counts the round trips of a store: requests are held until none can come before an answer, and go together."""

    def __init__(self, storage):
        objects = storage._objects
        self._request, objects._request = objects._request, self._held
        self._waiting = []
        self.count = self.requests = 0

    def of(self, do, work):
        """Return what the work gives, the trips one after the other that it took, and the requests."""
        self.count = self.requests = 0
        return do(work), self.count, self.requests

    async def _held(self, *asked):
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._waiting.append((asked, done))
        if len(self._waiting) == 1:
            loop.create_task(self._go()).add_done_callback(lambda task: task.result())
        return await done

    async def _go(self):
        held = 0
        while held < len(self._waiting):
            held = len(self._waiting)
            for _ in range(50):  # so many turns of the loop as one request may be apart from the next
                await asyncio.sleep(0)
        together, self._waiting = self._waiting, []
        self.count += 1
        self.requests += len(together)
        answers = await asyncio.gather(*(self._request(*asked) for asked, _ in together), return_exceptions=True)
        for (_, done), answer in zip(together, answers, strict=True):
            if isinstance(answer, BaseException):
                done.set_exception(answer)
            else:
                done.set_result(answer)
