"""What is missing on this machine, and the one command that mends it: `hapo doctor`.

Works where nothing is installed: libraries are imported in processes of their own, which may crash
or hang without harm. Takes at most ten seconds, and the time of looking at the cap if asked to.
"""

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from json import dumps
from pathlib import Path

from hapo_ros.resources import resource

OK, WARN, FAIL = "ok", "warn", "fail"
USES = ("simulation", "train", "deploy", "spacemouse")  # spacemouse: deploy with one
_NODES = ("deploy", "spacemouse")
PROBE_S = 7.0  # all probes together; they run side by side
PYTHONS = ((3, 10), (3, 13))
MIN_FREE_GB, GOOD_FREE_GB = 1.0, 10.0  # an hour of episodes with two small cameras is about 3 GB
MIN_SHARED_MB = 32.0  # a node takes about 1 MB, a deployment has eight
STARTING_S = 2.0
RULE_TARGET = "/etc/udev/rules.d/70-spacemouse.rules"
# What rendering without a screen needs of Debian and Ubuntu; scripts/setup.sh installs the same.
GL_PACKAGES = "libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri"
VENDORS = ("0000256F", "0000046D")


@dataclass(frozen=True)
class Check:
    """One thing looked at. ``fix``: the command that mends it, "" if nothing has to be mended."""

    name: str
    status: str  # OK | WARN | FAIL
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Library:
    """A Python package, what it is for and the uses that cannot do without it."""

    module: str
    distributions: tuple[str, ...]  # in order of preference, for the version
    purpose: str
    needed_by: tuple[str, ...]
    at_least: str = ""
    below: str = ""
    install: str = ""  # pip requirement; "" means the first distribution
    imported: bool = True  # False: importing takes seconds, so that it is there has to do


LIBRARIES = (
    Library("numpy", ("numpy",), "everything", USES, "1.26.4", "3"),
    Library("torch", ("torch",), "policies and learning", USES, "2.13"),
    Library("safetensors", ("safetensors",), "checkpoints", USES, "0.6"),
    Library("rosbags", ("rosbags",), "reading and writing bags", USES, "0.11", "0.12"),
    Library("mcap", ("mcap",), "recovering bags", USES, "1.3"),
    Library("yaml", ("PyYAML",), "configuration", USES, "6"),
    Library("rich", ("rich",), "the command line's tables", USES, "14"),
    Library("textual", ("textual",), "hapo console", ("spacemouse",), "8", "9"),
    Library("cv2", ("opencv-python-headless", "opencv-python"), "images", ("simulation",), "4.11"),
    Library("mujoco", ("mujoco",), "simulation", ("simulation",), "3.3", "3.10"),
    Library(
        "robosuite", ("robosuite",), "simulation", ("simulation",), "1.5.2", "1.6",
        "--no-deps robosuite==1.5.2",
    ),
    Library("transformers", ("transformers",), "LoRA: peft needs it", (), "5.5", "6"),
    Library("peft", ("peft",), "LoRA", (), "0.19", imported=False),
    Library("pyspacemouse", ("pyspacemouse",), "the SpaceMouse", ("spacemouse",), "2.1", "3"),
)  # fmt: skip

_IMPORT = "import importlib, sys; m = importlib.import_module(sys.argv[1]); print()"
_VERSION = "; print('version', getattr(m, '__version__', ''))"
_CUDA = """
if torch.cuda.is_available():
    print("device", torch.cuda.get_device_name(0))
elif torch.version.cuda:
    print("device no GPU that torch can use: CPU")
else:
    print("device CPU")
"""
_RENDER = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom type="box" size=".2 .2 .2"/></worldbody></mujoco>'
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 48, 64)
renderer.update_scene(data)
spread = renderer.render().std()
from OpenGL import GL
print()
print("renderer", (GL.glGetString(GL.GL_RENDERER) or b"").decode())
print("spread", spread)
import os, sys
sys.stdout.flush()
os._exit(0)  # EGL's teardown at interpreter exit complains
"""


def checks(live_s: float = 0.0, use: str = "simulation") -> list[Check]:
    """Look at everything. live_s: seconds to watch the SpaceMouse's axes for; 0: not at all.
    use: one of USES; what it needs and is missing has status FAIL, everything else WARN.
    """
    if use not in USES:
        raise ValueError(f"use must be one of {', '.join(USES)}, not {use!r}")
    deadline_s = time.monotonic() + PROBE_S
    with ThreadPoolExecutor(max_workers=4) as pool:
        render = pool.submit(_gl, use, deadline_s)
        rclpy = pool.submit(_rclpy, use, deadline_s)
        libraries = [pool.submit(_library, library, use, deadline_s) for library in LIBRARIES]
        found = [_python(), *(future.result() for future in libraries), render.result()]
        found += [rclpy.result(), _messages(use), _launch(), _domain(os.environ)]
        found += [_shared_memory(Path("/dev/shm"))]
    mouse = [_hidapi(), *_spacemouse(Path("/sys/class/hidraw"), Path("/dev"))]
    mouse += [_live_axes(live_s)] if live_s > 0 else []
    if use == "spacemouse":
        mouse = [replace(check, status=FAIL) if check.status == WARN else check for check in mouse]
    return [*found, *mouse, _disk(Path.cwd())]


def main(json: bool = False, live_s: float = 0.0, use: str = "simulation") -> int:
    """`hapo doctor`: print the checks; exit code 1 if one that ``use`` needs has failed."""
    if live_s > 0:
        print(f"Move the SpaceMouse's cap along every axis for {live_s:g} s.", file=sys.stderr)
    found = checks(live_s, use)
    failed = any(check.status == FAIL for check in found)
    if json:
        print(dumps({"ok": not failed, "use": use, "checks": [asdict(c) for c in found]}, indent=2))
    else:
        print(report(found))
    return int(failed)


def report(found: list[Check]) -> str:
    """The checks as a table for the terminal, then what has to be done."""
    mend = [check for check in found if check.fix and check.status != OK]
    todo = "".join(f"\n  {check.name}:\n    {check.fix}" for check in mend)
    worst = [sum(check.status == status for check in found) for status in (FAIL, WARN)]
    summary = (
        f"{worst[0]} missing, {worst[1]} to know about." if any(worst) else "Everything is there."
    )
    return f"{_table(found)}\n{summary}{todo}"


def _table(found: list[Check]) -> str:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        width = max(len(check.name) for check in found)
        return "\n".join(f"{c.status:4} {c.name:{width}} {c.found}" for c in found)
    marks = {OK: ("✓", "green"), WARN: ("!", "yellow"), FAIL: ("✗", "red")}
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in found:
        mark, style = marks[check.status]
        table.add_row(Text(mark, style), Text(check.name), Text(check.found))
    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")


# Libraries


@dataclass(frozen=True)
class _Probe:
    """What a Python process of its own said: key -> text of its ``key text`` lines, or why not."""

    said: dict[str, str]
    error: str = ""
    late: bool = False


def _probe(code: str, arguments: tuple[str, ...], deadline_s: float, **environment: str) -> _Probe:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        return _Probe({}, late=True)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=left_s,
            stdin=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),  # a checkout must not shadow what is installed
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired:
        return _Probe({}, late=True)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return _Probe({}, lines[-1] if lines else f"it ended with {done.returncode}")
    return _Probe(dict(line.partition(" ")[::2] for line in done.stdout.splitlines() if line))


def _library(library: Library, use: str, deadline_s: float) -> Check:
    name = library.module
    bad = FAIL if use in library.needed_by else WARN
    install = library.install or _requirement(library)
    fix = f"pip install {install}"
    if importlib.util.find_spec(name) is None:
        return Check(name, bad, f"not installed ({library.purpose})", fix)
    version, note = _installed(library.distributions), ""
    if library.imported:
        code = _IMPORT + _VERSION + (_CUDA.replace("torch", "m") if name == "torch" else "")
        probe = _probe(code, (name,), deadline_s)
        if probe.error:
            again = "pip install --force-reinstall " + install
            return Check(name, bad, f"{version} cannot be imported: {probe.error}", again)
        version = version or probe.said.get("version", "")
        if probe.late:
            note = " (importing it took too long to see whether it works)"
        elif device := probe.said.get("device"):
            note = f", {device}"
    if version and not _in_bounds(version, library):
        return Check(name, bad, f"{version} does not fit ({library.purpose})", fix)
    return Check(name, WARN if " (importing" in note else OK, (version or "there") + note)


def _requirement(library: Library) -> str:
    bounds = [f">={library.at_least}"] * bool(library.at_least)
    bounds += [f"<{library.below}"] * bool(library.below)
    return f'"{library.distributions[0]}{",".join(bounds)}"'


def _installed(distributions: tuple[str, ...]) -> str:
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _in_bounds(version: str, library: Library) -> bool:
    above = not library.at_least or _numbers(version) >= _numbers(library.at_least)
    return above and (not library.below or _numbers(version) < _numbers(library.below))


def _python() -> Check:
    low, high = PYTHONS
    version = ".".join(map(str, sys.version_info[:3]))
    if low <= sys.version_info[:2] <= high:
        return Check("Python", OK, f"{version} ({sys.executable})")
    wanted = f"{low[0]}.{low[1]} to {high[0]}.{high[1]}"
    return Check("Python", FAIL, f"{version}, but {wanted} is needed", "uv venv --python 3.12 venv")


def _gl(use: str, deadline_s: float) -> Check:
    bad = FAIL if use == "simulation" else WARN
    if importlib.util.find_spec("mujoco") is None:
        return Check("rendering", WARN, "not looked at: mujoco is missing")
    backend = os.environ.get("MUJOCO_GL") or "egl"
    probe = _probe(_RENDER, (), deadline_s, MUJOCO_GL=backend)
    fix = f"sudo apt install {GL_PACKAGES}"
    if probe.late:
        return Check("rendering", bad, f"{backend} rendered no frame in {PROBE_S:g} s", fix)
    if probe.error:
        return Check("rendering", bad, f"{backend} renders nothing: {probe.error}", fix)
    if not float(probe.said.get("spread", 0)) > 0:
        return Check("rendering", bad, f"{backend} renders an empty image", fix)
    return Check("rendering", OK, f"{backend}, {probe.said.get('renderer', '')}")


# ROS 2


def _rclpy(use: str, deadline_s: float) -> Check:
    bad = FAIL if use in _NODES else WARN
    setups = sorted(Path("/opt/ros").glob("*/setup.bash"))
    fix = f"source {setups[-1]}" if setups else "make setup"
    if importlib.util.find_spec("rclpy") is None:
        return Check("rclpy", bad, "not installed (the nodes; not the simulation loop)", fix)
    probe = _probe(_IMPORT + _VERSION, ("rclpy",), deadline_s)
    if probe.error:
        return Check("rclpy", bad, f"cannot be imported: {probe.error}", fix)
    version = _installed(("ros-rclpy", "rclpy")) or "there"
    distribution = os.environ.get("ROS_DISTRO", "")
    return Check("rclpy", OK, f"{version} {distribution}".strip())


def _messages(use: str) -> Check:
    name, bad = "hapo_ros.msg", FAIL if use in _NODES else WARN
    try:
        from hapo_ros.msg import ObservationTick
    except ImportError as error:
        built = "colcon build --packages-select hapo_ros && source install/setup.bash"
        return Check(
            name,
            bad,
            f"the generated messages are missing: {error}",
            built if os.environ.get("ROS_DISTRO") and shutil.which("colcon") else "make setup",
        )
    return Check(name, OK, str(Path(sys.modules[ObservationTick.__module__].__file__).parents[1]))


def _launch() -> Check:
    if importlib.util.find_spec("launch_ros") and shutil.which("ros2"):
        return Check("ros2 launch", OK, shutil.which("ros2"))
    distribution = os.environ.get("ROS_DISTRO", "jazzy")
    return Check(
        "ros2 launch",
        WARN,
        "not installed; `hapo deploy` starts the same nodes",
        f"sudo apt install ros-{distribution}-ros2launch",
    )


def _domain(environment) -> Check:
    name = "ROS domain"
    domain = environment.get("ROS_DOMAIN_ID", "")
    reach = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "") or "SUBNET"
    found = f"ROS_DOMAIN_ID {domain or 'unset (0)'}, discovery {reach}"
    if domain and not (domain.isascii() and domain.isdigit() and int(domain) <= 232):
        text = f"ROS_DOMAIN_ID is {domain!r}, not a number from 0 to 232"
        return Check(name, WARN, text, "export ROS_DOMAIN_ID=42")
    if reach == "OFF" or reach not in ("SUBNET", "LOCALHOST", "SYSTEM_DEFAULT"):
        text = f"{found}: nodes do not find each other"
        return Check(name, WARN, text, "export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST")
    if int(domain or 0) == 0 and reach != "LOCALHOST":
        text = f"{found}: shared with every ROS 2 robot on this network"
        return Check(name, WARN, text, "export ROS_DOMAIN_ID=42")
    return Check(name, OK, found)


def _shared_memory(folder: Path) -> Check:
    """Room for the nodes' segments, and whether nodes that were killed have left theirs."""
    name = "shared memory"
    if not folder.is_dir():
        return Check(name, WARN, f"{folder} is missing: nodes talk over the network only")
    dead = [path for path in _segment_locks(folder) if _left_behind(path)]
    left_mb = sum(_size_mb(path.with_name(path.name.removesuffix("_el"))) for path in dead)
    free_mb = shutil.disk_usage(folder).free / 1e6
    found = f"{free_mb:.0f} MB free in {folder}"
    if dead:
        text = f"{found}; {left_mb:.0f} MB in {len(dead)} segments are of nodes that were killed"
        beside = Path(sys.executable).with_name("fastdds")
        return Check(name, WARN, text, f"{beside if beside.exists() else 'fastdds'} shm clean")
    if free_mb < MIN_SHARED_MB:
        text = f"{found}: too little, nodes may not hear each other"
        return Check(name, WARN, text, f"ls -lS {folder}; in a container: docker run --shm-size=1g")
    return Check(name, OK, found)


def _segment_locks(folder: Path) -> list[Path]:
    return [path for path in folder.glob("fastrtps_*_el") if "_port" not in path.name]


def _left_behind(path: Path) -> bool:
    """Whether the process that a lock of Fast DDS belongs to has ended without removing it.

    A process locks the file as it makes it, and until it ends. One that was made just now is left
    alone: taking its lock, even for a moment, could end a node that is starting.
    """
    try:
        if time.time() - path.stat().st_mtime < STARTING_S:
            return False
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # locked, another user's, or gone meanwhile
        return False
    return True


def _size_mb(path: Path) -> float:
    try:
        return path.stat().st_blocks * 512 / 1e6
    except OSError:
        return 0.0


# The SpaceMouse


def _hidapi() -> Check:
    library = find_library("hidapi-hidraw")
    if library:
        return Check("hidapi", OK, library)
    text = "libhidapi-hidraw is missing (the SpaceMouse)"
    return Check("hidapi", WARN, text, "sudo apt install libhidapi-hidraw0")


def _hidraw(folder: Path) -> Iterator[tuple[str, str]]:
    """(file name, name of the product) of every SpaceMouse that the kernel has, readable or not."""
    for entry in sorted(folder.glob("hidraw*")):
        try:
            lines = (entry / "device" / "uevent").read_text("utf8", "replace").splitlines()
        except OSError:  # unplugged meanwhile
            continue
        fields = dict(line.partition("=")[::2] for line in lines)
        _, vendor, product = (fields.get("HID_ID", "").upper().split(":") + ["", "", ""])[:3]
        if vendor == VENDORS[0] or (vendor == VENDORS[1] and product.startswith("0000C62")):
            yield entry.name, fields.get("HID_NAME", "SpaceMouse")


def rule_command() -> str:
    """The command that lets everyone at this machine read a SpaceMouse."""
    return (
        f"sudo install -m 644 {resource('config/99-spacemouse.rules')} {RULE_TARGET} && "
        "sudo udevadm control --reload-rules && "
        "sudo udevadm trigger --subsystem-match=hidraw --action=change"
    )


def _spacemouse(folder: Path, devices: Path) -> list[Check]:
    mice = list(_hidraw(folder))
    if not mice:
        text = "none is plugged in; operator:=keyboard and operator:=simulated work without"
        return [Check("SpaceMouse", WARN, text)]
    found = [Check("SpaceMouse", OK, ", ".join(f"{name} ({file})" for file, name in mice))]
    for file, _ in mice:
        path, name = devices / file, f"permission {file}"
        if not path.exists():
            text = f"{path} is not here: this is a container that was not given it"
            found.append(Check(name, WARN, text, f"docker run --device {path} ..."))
        elif os.access(path, os.R_OK | os.W_OK):
            found.append(Check(name, OK, f"{path} can be read"))
        else:
            found.append(Check(name, WARN, f"{path} may not be read by you", rule_command()))
    return found


def _live_axes(
    live_s: float, now: Callable[[], float] = time.monotonic, pause: Callable = time.sleep
) -> Check:
    name, again = "SpaceMouse axes", f"hapo doctor --live {live_s:g}"
    try:
        from hapo_ros.devices import AXES, DeviceLost
        from hapo_ros.devices.spacemouse import open_spacemouse
    except ImportError as error:
        return Check(name, WARN, f"not looked at: {error}", again)
    largest, buttons, count = dict.fromkeys(AXES, 0.0), set(), 0
    try:
        mouse = open_spacemouse(now())
        try:
            end_s = now() + live_s
            while now() < end_s:
                for read in mouse.poll(now()):
                    count += 1
                    buttons |= {i for i, down in enumerate(read.buttons) if down}
                    for axis, value in zip(AXES, read.axes, strict=True):
                        largest[axis] = max(largest[axis], abs(float(value)))
                pause(0.005)
        finally:
            mouse.close()
    except DeviceLost as error:
        return Check(name, WARN, str(error), again)
    if not count:
        text = f"no report in {live_s:g} s: the cap was not moved, or the mouse is switched off"
        return Check(name, WARN, text, again)
    found = " ".join(f"{axis} {value:.2f}" for axis, value in largest.items())
    found += f", buttons {sorted(buttons) or 'none'}, {count / live_s:.0f} reports/s"
    still = [axis for axis, value in largest.items() if value == 0]
    if still:
        return Check(name, WARN, f"{found}; not moved: {', '.join(still)}", again)
    return Check(name, OK, found)


def _disk(folder: Path) -> Check:
    free_gb = shutil.disk_usage(folder).free / 1e9
    found = f"{free_gb:.1f} GB free in {folder}"
    if free_gb >= GOOD_FREE_GB:
        return Check("disk", OK, found)
    status = WARN if free_gb >= MIN_FREE_GB else FAIL
    return Check("disk", status, found, f"du -xh --max-depth=2 {folder} | sort -h | tail")
