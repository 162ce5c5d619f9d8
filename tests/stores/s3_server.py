"""An S3 server on 127.0.0.1 that says what it was asked, and fails when it is told to."""

import logging
from functools import cache
from itertools import count
from urllib.parse import urlencode

import boto3
from moto.server import ThreadedMotoServer

CREDENTIALS = {"access_key_id": "AKIDTEST", "secret_access_key": "PSSWD", "region": "us-east-1"}
_names = count()


class Server:
    """A running server. `asked` are the requests since it was cleared, as method and path."""

    def __init__(self):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.asked = []
        self._faults = []
        self._app = self._server._server.app
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
        for fault in self._faults:
            status, part, wanted, done = fault
            if part in path and wanted in ("", method):
                self._faults.remove(fault)
                if done:
                    for _ in self._app(environ, lambda *answer: None):
                        pass
                else:
                    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(status, [("Content-Type", "application/xml"), ("Content-Length", "0")])
                return [b""]
        return self._app(environ, start_response)

    def forget_faults(self):
        self._faults.clear()

    def stop(self):
        self.client.close()
        self._server.stop()


@cache
def running():
    """Return this process's server, started by the first call."""
    return Server()
