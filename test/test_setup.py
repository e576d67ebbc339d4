"""What scripts/setup.sh decides by itself: which build of PyTorch, and how much room it needs."""

import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUP, CONSTRAINTS = ROOT / "scripts" / "setup.sh", ROOT / "constraints" / "pypi.txt"
NO_DEVICE = "/dev/there_is_none[0-9]*"


def setup(command: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a command with the functions of the script that choose the build."""
    text = SETUP.read_text()
    functions = text[text.index("cpu_index() {") : text.index("install_packages() {")]
    environment = f"set -euo pipefail; venv={sys.prefix}; torch_index=\n"
    environment += 'say() { echo "$*"; }; fail() { echo "$*" >&2; exit 1; }\n'
    return subprocess.run(
        ["bash", "-c", environment + functions + command, "bash", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )


def chosen(url: str, *devices: str) -> str:
    done = setup('cpu_index "$@"', url, *devices)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def index(tmp_path):
    """An index of packages that has torch; its URL."""
    (tmp_path / "torch").mkdir()

    def handler(*arguments):
        return http.server.SimpleHTTPRequestHandler(*arguments, directory=tmp_path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_cpu_build_is_taken_where_its_index_answers_and_no_gpu_is_there(index):
    assert chosen(index, NO_DEVICE) == f"--extra-index-url={index}"
    assert chosen(index, NO_DEVICE, "/dev/nul[k-m]") == ""  # that one is there


def test_an_index_that_is_not_there_or_never_answers_is_left_out():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert chosen(url, NO_DEVICE) == ""  # nobody listens
        silent.listen()
        assert chosen(url, NO_DEVICE) == ""


@pytest.mark.parametrize(
    ("free_kb", "build", "ok"),
    [(6_000_000, "cpu", True), (4_000_000, "cpu", False)]
    + [(10_000_000, "cuda", True), (6_000_000, "cuda", False)],
)
def test_the_room_that_is_needed_is_that_of_the_build(free_kb, build, ok):
    finds = "finds_cpu_build() { " + ("true" if build == "cpu" else "false") + "; }\n"
    df = f"df() {{ printf 'head\\n/dev/x 1 1 {free_kb} 1 /\\n'; }}\n"
    done = setup(finds + df + "look_for_room")
    assert (done.returncode == 0) == ok, done.stderr
    assert f"PyTorch: the {build.upper()} build" in done.stdout
    assert ok or "No package was installed." in done.stderr


@pytest.mark.parametrize("local", ["", "+cpu"])
def test_which_build_pip_would_install_is_found_out_by_asking_it(tmp_path, monkeypatch, local):
    """Two wheels by that name, with nothing in them."""
    pinned = re.search(r"^torch==(\S+)$", CONSTRAINTS.read_text(), re.M)[1]
    for version in {pinned, pinned + local}:
        info = f"torch-{version}.dist-info"
        with zipfile.ZipFile(tmp_path / f"torch-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
            )
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert (setup("finds_cpu_build").returncode == 0) == (local == "+cpu")
