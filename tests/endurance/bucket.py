"""An S3 server on this machine, which may go away and come back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs


class Bucket:
    """A bucket on a running server.

    Attributes:
        uri: of a folder in it, as pyarrow writes it.
    """

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self._host, self._port = self._server.get_host_and_port()
        url = f"http://{self._host}:{self._port}"
        # What an earlier server of this process had is still there.
        urlopen(f"{url}/moto-api/reset", data=b"").close()
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        client.create_bucket(Bucket="kdsearch")
        place = f"endpoint_override={self._host}:{self._port}&scheme=http&region=us-east-1"
        self.uri = f"s3://kdsearch/team?{place}"

    def upload(self, folder: Path) -> None:
        """Copies a local folder's files into that of the URI."""
        filesystem, path = fs.FileSystem.from_uri(self.uri)
        fs.copy_files(str(folder), path, fs.LocalFileSystem(), filesystem)

    def stop(self) -> None:
        """Takes the server away."""
        self._server.stop()

    @contextmanager
    def away(self) -> Iterator[None]:
        """The server is not there; then it is back, with all it had."""
        self.stop()
        yield
        self._server = ThreadedMotoServer(self._host, self._port, verbose=False)
        self._server.start()


@contextmanager
def running_bucket() -> Iterator[Bucket]:
    """An empty bucket, with what opens it in the environment."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        bucket = Bucket()
        try:
            yield bucket
        finally:
            bucket.stop()
