"""An object store that speaks S3, in memory: ``python -m tests.object_store HOST PORT BUCKET``."""

from __future__ import annotations

import sys
import threading
import urllib.request

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def serve(host: str, port: int, bucket: str) -> None:
    """Serves an empty bucket from threads of this process."""
    from moto.server import ThreadedMotoServer  # logs whatever anybody says from then on

    server = ThreadedMotoServer(ip_address=host, port=port)
    server.start()
    made = urllib.request.Request(f"http://{host}:{port}/{bucket}", method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(made, timeout=20).close()
    return server


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    print("ready", flush=True)
    threading.Event().wait()
