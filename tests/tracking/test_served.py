"""What the page of runs says where it can't be served."""

import socket
import subprocess
import sys


def test_a_taken_port_is_one_line(workspace):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "pipeline.tracking", "ui", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: 127.0.0.1:{port} can't be listened on (")
    assert f"make ui PORT={port + 1}" in done.stderr
