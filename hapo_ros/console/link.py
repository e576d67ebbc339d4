"""The console's link to the graph: one gateway, started again when it dies."""

import tempfile
import threading
from collections.abc import Callable

from hapo_ros.gateway_client import GatewayClient, GatewayError
from hapo_ros.supervisor import DeploymentError

SERVER_S = 3.0  # a request whose server is not there for this long is given up
RESTART_S, RESTART_MOST_S = 0.5, 8.0  # doubled with every gateway that dies without a word


class Link:
    """What is heard comes in the link's own thread; what is sent goes out at once, in the caller's.

    Raises DeploymentError where the nodes are not installed.
    """

    def __init__(self):
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the link
        self._ended = threading.Event()
        self._client = self._start()
        self._thread: threading.Thread | None = None

    def _start(self) -> GatewayClient:
        return GatewayClient(SERVER_S, log=self._log, console=True)

    def listen(self, hear: Callable[[dict], None]) -> None:
        """Pass on everything that is heard from now on: events, answers, and as events of its own
        ``gateway_lost`` (with ``text``) and, with the first word of the next, ``gateway_started``.
        """
        self._thread = threading.Thread(target=self._listen, args=(hear,), daemon=True)
        self._thread.start()

    def send(self, call: str, **fields) -> int:
        """Send a request; returns its id. Its answer is heard. Raises GatewayError."""
        return self._client.begin(call, **fields)

    def _listen(self, hear: Callable[[dict], None]) -> None:
        deaths = 0  # since something was heard
        while not self._ended.is_set():
            try:
                said = self._client.heard(0.1)
            except GatewayError as error:
                hear(
                    {"event": "gateway_lost", "text": f"{error} It is started again.{self._why()}"}
                )
                self._restart(min(RESTART_S * 2**deaths, RESTART_MOST_S))
                deaths += 1
                continue
            if said is None:
                continue
            if deaths:
                deaths = 0
                hear({"event": "gateway_started"})
            hear(said)

    def _restart(self, wait_s: float) -> None:
        self._client.close()
        while not self._ended.wait(wait_s):
            try:
                self._client = self._start()
            except (DeploymentError, OSError):
                continue  # it is being installed anew, or the machine is short of something
            return

    def _why(self) -> str:
        """The last line that the gateways wrote, where there is one."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((f" ({line.strip()})" for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """End the gateway; nothing is heard any more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(5)
        self._client.close()
        self._log.close()

    def __enter__(self) -> "Link":
        return self

    def __exit__(self, *_) -> None:
        self.close()
