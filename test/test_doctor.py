"""`hapo doctor`: every fault it looks for, made on purpose."""

import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hapo_ros import doctor
from hapo_ros.devices import DeviceLost, DeviceReport
from hapo_ros.devices import spacemouse as devices
from hapo_ros.doctor import FAIL, OK, WARN, Check, Library

ROOT = Path(__file__).resolve().parent.parent


def soon():
    return time.monotonic() + 20


def library(**settings):
    return Library(
        **{"module": "numpy", "distributions": ("numpy",), "purpose": "p", "needed_by": ("train",)}
        | settings
    )


def test_everything_is_looked_at_within_ten_seconds():
    took_s = []
    while not took_s or (min(took_s) >= 10 and len(took_s) < 5):  # a busy machine may need another
        begin_s = time.monotonic()
        found = doctor.checks()
        took_s.append(time.monotonic() - begin_s)
    assert min(took_s) < 10
    names = [check.name for check in found]
    for name in ("Python", "torch", "robosuite", "rendering", "rclpy", "hapo_ros.msg", "hidapi",
                 "SpaceMouse", "ROS domain", "shared memory", "disk"):  # fmt: skip
        assert name in names
    for check in found:
        assert check.status in (OK, WARN, FAIL) and check.found
        assert check.status != OK or not check.fix


def test_nothing_heavy_is_imported_by_importing_the_doctor():
    code = "import sys, hapo_ros.doctor; print([m for m in %r if m in sys.modules])"
    heavy = ["numpy", "torch", "rich", "rclpy", "mujoco", "pyspacemouse"]
    done = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_it_runs_where_nothing_is_installed(tmp_path):
    """Without site-packages: the doctor alone, from a copy."""
    package = tmp_path / "hapo_ros"
    package.mkdir()
    for name in ("__init__", "doctor", "resources"):
        source = Path(doctor.__file__).with_name(f"{name}.py")
        (package / source.name).write_text(source.read_text())
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\n"
        "from hapo_ros.doctor import main\n"
        "sys.exit(main())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    # -S leaves site-packages out; its children have the same executable but not the flag.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "torch" in done.stdout and "not installed" in done.stdout
    assert 'pip install "torch>=2.13"' in done.stdout and "make setup" in done.stdout


def test_a_missing_library_fails_only_the_use_that_needs_it():
    missing = library(module="no_such_library", distributions=("no-such-library",))
    needed, other = (doctor._library(missing, use, soon()) for use in ("train", "deploy"))
    assert (needed.status, other.status) == (FAIL, WARN)
    assert needed.fix == 'pip install "no-such-library"' and "not installed" in needed.found


def test_a_library_of_the_wrong_version_names_the_one_that_fits():
    version = metadata.version("numpy")
    old = doctor._library(library(at_least="999"), "train", soon())
    new = doctor._library(library(below=version), "train", soon())
    fits = doctor._library(library(at_least=version, below="999"), "train", soon())
    assert (old.status, new.status, fits.status) == (FAIL, FAIL, OK)
    assert old.fix == 'pip install "numpy>=999"' and version in old.found


def test_versions_are_compared_as_numbers():
    assert doctor._in_bounds("3.9.0", library(below="3.10"))
    assert not doctor._in_bounds("3.10.1", library(below="3.10"))
    assert doctor._in_bounds("2.13.0+cpu", library(at_least="2.13"))
    assert doctor._in_bounds("2.13", library(at_least="2.13"))


def test_a_broken_library_is_told_from_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("raise ImportError('libGL.so.1: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found = doctor._library(library(module="broken_library"), "train", soon())
    assert found.status == FAIL and "cannot be imported" in found.found
    assert "libGL.so.1" in found.found and "--force-reinstall" in found.fix


def test_a_library_that_hangs_does_not_hold_the_doctor_up(tmp_path, monkeypatch):
    (tmp_path / "hanging_library.py").write_text("import threading; threading.Event().wait()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    begin_s = time.monotonic()
    found = doctor._library(library(module="hanging_library"), "train", begin_s + 0.5)
    assert found.status == WARN and "took too long" in found.found
    assert time.monotonic() - begin_s < 5


def test_rendering_that_fails_names_the_package(monkeypatch):
    if importlib.util.find_spec("mujoco") is None:
        pytest.skip("mujoco is not installed")
    monkeypatch.setenv("MUJOCO_GL", "no_such_backend")
    found = doctor._gl("simulation", soon())
    assert found.status == FAIL and "no_such_backend" in found.found and "libegl1" in found.fix


def test_everyone_names_the_same_packages_for_rendering():
    """The doctor and the simulation's error share them; what is installed has to be the same."""
    packages = set(doctor.GL_PACKAGES.split())
    setup = (ROOT / "scripts" / "setup.sh").read_text()
    installed = set(re.findall(r"echo (lib(?:e?gl)[\w-]*)", setup))
    assert installed == packages
    (line,) = re.findall(r"^    libhidapi-hidraw0 (.*)$", (ROOT / "README.md").read_text(), re.M)
    assert set(line.split()) == packages


@pytest.mark.parametrize(
    ("probe", "status"),
    [
        (doctor._Probe({"spread": "0.0"}), FAIL),
        (doctor._Probe({}, late=True), FAIL),
        (doctor._Probe({}, error="it ended with -11"), FAIL),
        (doctor._Probe({"spread": "41.5", "renderer": "llvmpipe"}), OK),
    ],
)
def test_a_frame_has_to_show_something(monkeypatch, probe, status):
    monkeypatch.setattr(doctor, "_probe", lambda *_, **__: probe)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert doctor._gl("simulation", soon()).status == status
    assert doctor._gl("deploy", soon()).status in (OK, WARN)


def test_a_crashing_probe_is_reported_by_its_exit_code():
    probe = doctor._probe("import os; os.kill(os.getpid(), 11)", (), soon())
    assert probe.error == "it ended with -11" and not probe.late


@pytest.mark.parametrize(
    ("environment", "status"),
    [
        ({}, WARN),  # domain 0 on the whole network
        ({"ROS_DOMAIN_ID": "7"}, OK),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}, OK),
        ({"ROS_DOMAIN_ID": "233"}, WARN),
        ({"ROS_DOMAIN_ID": "lab"}, WARN),
        ({"ROS_DOMAIN_ID": "7", "ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}, WARN),
        ({"ROS_DOMAIN_ID": "7", "ROS_AUTOMATIC_DISCOVERY_RANGE": "localhost"}, WARN),
    ],
)
def test_the_ros_domain_is_judged(environment, status):
    found = doctor._domain(environment)
    assert found.status == status and bool(found.fix) == (status != OK)


def test_shared_memory_of_nodes_that_were_killed_is_told_and_of_running_ones_is_not(tmp_path):
    code = (
        "import rclpy; rclpy.init(); node = rclpy.create_node('n'); print('up', flush=True);"
        "rclpy.spin(node)"
    )
    local = {"ROS_DOMAIN_ID": "77", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    before = set(doctor._segment_locks(Path("/dev/shm")))
    node = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | local
    )
    try:
        assert node.stdout.readline() == "up\n"
        maps = Path(f"/proc/{node.pid}/maps").read_text()
        made = {
            path
            for path in set(doctor._segment_locks(Path("/dev/shm"))) - before
            if path.name.removesuffix("_el") in maps
        }
        assert made
        for path in made:  # as if they had been made some time ago
            os.utime(path, (0, 0))
        assert not any(doctor._left_behind(path) for path in made)
    finally:
        node.kill()
        node.communicate(timeout=10)
    try:
        assert all(doctor._left_behind(path) for path in made)
        found = doctor._shared_memory(Path("/dev/shm"))
        assert found.status == WARN and "were killed" in found.found
        assert found.fix.endswith("fastdds shm clean")
    finally:
        for path in made:
            for file in (path, path.with_name(path.name.removesuffix("_el"))):
                file.unlink(missing_ok=True)


@pytest.mark.parametrize(("free_mb", "status"), [(8, WARN), (500, OK)])
def test_shared_memory_that_is_too_small_is_told(monkeypatch, tmp_path, free_mb, status):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free_mb * 1e6))
    assert doctor._shared_memory(tmp_path).status == status
    assert doctor._shared_memory(tmp_path / "none").status == WARN


def test_shared_memory_of_a_node_that_is_just_starting_is_left_alone(tmp_path):
    lock = tmp_path / "fastrtps_0123456789abcdef_el"
    lock.touch()
    assert doctor._shared_memory(tmp_path).status == OK
    os.utime(lock, (0, 0))
    assert doctor._shared_memory(tmp_path).status == WARN


def kernel(folder, name, hid_id, product):
    entry = folder / "class" / name / "device"
    entry.mkdir(parents=True)
    (entry / "uevent").write_text(f"DRIVER=hid-generic\nHID_ID={hid_id}\nHID_NAME={product}\n")
    return folder / "class"


def test_no_spacemouse_is_a_warning_that_names_the_alternatives(tmp_path):
    kernel(tmp_path, "hidraw0", "0003:0000046D:0000C52B", "Logitech USB Receiver")
    (found,) = doctor._spacemouse(tmp_path / "class", tmp_path)
    assert found.status == WARN and "operator:=keyboard" in found.found


@pytest.mark.parametrize(
    "hid_id",
    ["0003:0000256F:0000C635", "0003:0000046D:0000C626", "0005:0000256F:0000C638"],
)
def test_a_spacemouse_is_found_without_any_library(tmp_path, hid_id):
    folder = kernel(tmp_path, "hidraw3", hid_id, "3Dconnexion SpaceMouse")
    (tmp_path / "hidraw3").touch()
    mouse, permission = doctor._spacemouse(folder, tmp_path)
    assert mouse == Check("SpaceMouse", OK, "3Dconnexion SpaceMouse (hidraw3)")
    assert permission.status == OK


def test_a_spacemouse_without_permission_gets_the_udev_rule(tmp_path, monkeypatch):
    folder = kernel(tmp_path, "hidraw3", "0003:0000256F:0000C635", "SpaceMouse Compact")
    (tmp_path / "hidraw3").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    _, permission = doctor._spacemouse(folder, tmp_path)
    assert permission.status == WARN and "may not be read" in permission.found
    assert permission.fix == doctor.rule_command()
    rules, target = permission.fix.split()[4:6]
    assert stat.S_ISREG(os.stat(rules).st_mode) and target == doctor.RULE_TARGET


def test_the_udev_rule_is_installed_in_time_for_uaccess():
    """A tag set after 73-seat-late.rules has no effect."""
    assert doctor.RULE_TARGET.rpartition("/")[2] < "73-seat-late.rules"


def test_a_spacemouse_outside_the_container_is_told(tmp_path):
    folder = kernel(tmp_path, "hidraw3", "0003:0000256F:0000C635", "SpaceMouse Compact")
    _, permission = doctor._spacemouse(folder, tmp_path / "dev")
    assert permission.status == WARN and "--device" in permission.fix


def test_what_is_a_warning_elsewhere_fails_who_wants_to_use_the_spacemouse(monkeypatch):
    monkeypatch.setattr(doctor, "LIBRARIES", ())
    monkeypatch.setattr(doctor, "_spacemouse", lambda *_: [Check("SpaceMouse", WARN, "none")])
    monkeypatch.setattr(doctor, "_probe", lambda *_, **__: doctor._Probe({"spread": "1"}))
    statuses = {use: {c.name: c.status for c in doctor.checks(use=use)} for use in doctor.USES}
    assert {use: found["SpaceMouse"] for use, found in statuses.items()} == {
        "simulation": WARN, "train": WARN, "deploy": WARN, "spacemouse": FAIL,
    }  # fmt: skip


class Clock:
    """Time that passes only in pauses."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s

    def pause(self, duration_s):
        self.now_s += duration_s


def live(monkeypatch, poll):
    closed = []
    mouse = SimpleNamespace(poll=poll, close=lambda: closed.append(True))
    monkeypatch.setattr(devices, "open_spacemouse", lambda now_s: mouse)
    clock = Clock()
    found = doctor._live_axes(2.0, now=clock, pause=clock.pause)
    assert closed == [True]
    return found


def test_live_axes_are_shown_and_a_still_one_is_named(monkeypatch):
    axes = np.array([0.5, -1.0, 0.25, 0.1, 0.2, 0.0], np.float32)
    found = live(monkeypatch, lambda now_s: [DeviceReport(axes, (0, 1), now_s)])
    assert found.status == WARN and "not moved: yaw" in found.found
    assert "y 1.00" in found.found and "buttons [1]" in found.found
    axes = np.ones(6, np.float32)
    assert live(monkeypatch, lambda now_s: [DeviceReport(axes, (0, 0), now_s)]).status == OK


def test_a_mouse_that_reports_nothing_may_be_switched_off(monkeypatch):
    found = live(monkeypatch, lambda now_s: [])
    assert found.status == WARN and "switched off" in found.found and found.fix


def test_a_mouse_pulled_out_while_it_is_watched_is_a_warning(monkeypatch):
    def poll(now_s):
        raise DeviceLost("SpaceMouse lost (pulled).")

    assert live(monkeypatch, poll).found == "SpaceMouse lost (pulled)."


@pytest.mark.parametrize(("free_gb", "status"), [(0.5, FAIL), (5, WARN), (50, OK)])
def test_a_full_disk_is_told(monkeypatch, tmp_path, free_gb, status):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free_gb * 1e9))
    assert doctor._disk(tmp_path).status == status


FOUND = [
    Check("torch", OK, "2.13.0, CPU"),
    Check("SpaceMouse", WARN, "none [yet]"),
    Check("rendering", FAIL, "renders nothing", "sudo apt install libegl1"),
]


def test_the_exit_code_is_one_only_when_something_needed_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "checks", lambda live_s, use: FOUND)
    assert doctor.main() == 1
    assert "1 missing" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "checks", lambda live_s, use: FOUND[:2])
    assert doctor.main(json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True and said["use"] == "simulation"
    assert said["checks"][0] == {"name": "torch", "status": OK, "found": "2.13.0, CPU", "fix": ""}


def test_the_report_shows_every_check_and_its_fix_whole(monkeypatch):
    text = doctor.report(FOUND)
    for part in ("torch", "none [yet]", "1 missing, 1 to know about", "sudo apt install libegl1"):
        assert part in text
    monkeypatch.setitem(sys.modules, "rich.console", None)  # without rich: plain text
    assert "fail rendering  renders nothing" in doctor.report(FOUND)
    assert doctor.report(FOUND[:1]).endswith("Everything is there.")


def test_an_unknown_use_is_refused():
    with pytest.raises(ValueError, match="one of simulation, train"):
        doctor.checks(use="cooking")
