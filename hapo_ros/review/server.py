"""Runs the review page."""

import ipaddress
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

from hapo_ros.review.guard import Guard
from hapo_ros.review.index import Index
from hapo_ros.review.training import Training

STARTS_S = 30.0


@contextmanager
def serving(
    folders: Sequence[str | Path], checkpoints: str | Path, host: str = "127.0.0.1", port: int = 0
):
    """Serve the page in a thread; yields its address. port 0: any that is free.

    An address that others can reach gets a token, which is part of what is yielded. Raises OSError
    where the port is taken, ValueError where a folder is not there.
    """
    import uvicorn

    from hapo_ros.review.app import make_app

    with _listening(host, port) as listener, Index(folders) as index:
        port = listener.getsockname()[1]
        token = "" if is_loopback(host) else secrets.token_urlsafe(24)
        names = {host, "localhost", "127.0.0.1", "::1"}
        hosts = frozenset(f"{_in_address(name)}:{port}" for name in names)
        training = Training(Path(checkpoints))
        app = Guard(make_app(index, training), frozenset() if token else hosts, token)
        options = {"log_level": "warning", "access_log": False, "server_header": False}
        options |= {"ws": "none", "lifespan": "off", "timeout_graceful_shutdown": 2}
        server = uvicorn.Server(uvicorn.Config(app, **options))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        address = f"http://{_in_address(_named(host))}:{port}/"
        try:
            yield address + (f"?token={token}" if token else "")
        finally:
            server.should_exit = True
            thread.join(STARTS_S)
            training.close()


def run(
    folders: Sequence[str],
    checkpoints: str,
    host: str,
    port: int,
    browser: bool,
    wait: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Serve until ``wait`` returns. browser: open it. say: takes a sentence for the user."""
    with serving(folders, checkpoints, host, port) as address:
        say(f"The review page is at {address}  (Ctrl-C ends it)")
        if not is_loopback(host):
            say("It can be reached from other machines, by whoever has this address, unencrypted.")
        if browser:
            webbrowser.open(address)
        wait()


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, out of reach for others."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _listening(host: str, port: int):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise OSError(
                f"{host}:{port} cannot be listened on ({error.strerror}). Give another --port."
            ) from error
        listener.listen(100)
        yield listener


def _named(host: str) -> str:
    """What to call the machine in an address: a wildcard is no name."""
    try:
        anywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        anywhere = False
    return socket.gethostname() if anywhere else host


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host
