"""The client of the gateway, and the console's link, with gateways that die or never answer.

The gateways here are doubles: small scripts that speak its JSON lines. The real one: test_nodes.py.
"""

import queue
from pathlib import Path

import pytest

from hapo_ros.console import link
from hapo_ros.gateway_client import GatewayClient, GatewayError

DEADLINE_S = 20.0


@pytest.fixture
def gateway(tmp_path, monkeypatch):
    """Installs a script as the gateway node; returns its folder."""
    folder = tmp_path / "lib" / "hapo_ros"
    folder.mkdir(parents=True)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))

    def install(script: str) -> Path:
        (folder / "gateway").write_text(script)
        return folder

    return install


def test_a_request_is_given_up_however_much_else_is_heard(gateway):
    gateway(
        "import json, time\n"
        f"end_s = time.monotonic() + {DEADLINE_S}\n"
        "while time.monotonic() < end_s:\n"
        "    print(json.dumps({'event': 'authority'}), flush=True)\n"
        "    time.sleep(0.01)\n"
    )
    heard = []
    given_up = pytest.raises(GatewayError, match=r"No answer from the graph for 0\.3 s")
    with GatewayClient(on_event=heard.append) as client, given_up:
        client.call("end_episode", 0.3)
    assert heard


def test_a_gateway_that_dies_as_it_starts_stays_lost_until_one_has_said_something(
    gateway, monkeypatch
):
    monkeypatch.setattr(link, "RESTART_S", 0.01)
    folder = gateway(
        "import sys, time\nfrom pathlib import Path\n"
        "starts = Path(__file__).with_name('starts')\n"
        "count = len(starts.read_text()) if starts.exists() else 0\n"
        "starts.write_text('x' * (count + 1))\n"
        "if count < 2: sys.exit('no network')\n"
        'print(\'{"event": "ready"}\', flush=True)\n'
        f"time.sleep({DEADLINE_S})\n"
    )
    heard = queue.Queue()
    with link.Link() as connection:
        connection.listen(heard.put)
        events = [heard.get(timeout=DEADLINE_S) for _ in range(4)]
    assert [said["event"] for said in events] == [
        *["gateway_lost"] * 2,
        "gateway_started",
        "ready",
    ]
    assert "(no network)" in events[1]["text"]
    assert (folder / "starts").read_text() == "xxx"
