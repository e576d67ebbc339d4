"""What is installed is what is in the checkout, and the layers keep to themselves."""

import ast
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest

import hapo_ros
from hapo_ros.resources import resource

ROOT = Path(__file__).resolve().parent.parent
INTERFACES = sorted(
    path for kind in ("msg", "srv", "action") for path in (ROOT / kind).glob(f"*.{kind}")
)
MODULES = sorted((ROOT / "hapo_ros").rglob("*.py"))
# robosuite is installed without its requirements (requirements/sim.txt says why); these of them are
# absent: mink holds numpy at 1.26, qpsolvers is for mink, pynput for robosuite's own keyboard, and
# opencv-python would overwrite opencv-python-headless.
UNMET = {"mink", "opencv-python", "pynput", "qpsolvers"}


def imported_by(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at its top or anywhere in it."""
    names = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
    return names


def within(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(package + ".")}


def test_the_installed_package_is_tested_and_not_the_checkout():
    package = Path(hapo_ros.__file__).resolve().parent
    assert package.parent.name in ("site-packages", "dist-packages")
    assert package != ROOT / "hapo_ros"


def test_every_python_file_is_installed_as_it_is_in_the_checkout():
    package = Path(hapo_ros.__file__).parent
    differing = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if not (package / path.relative_to(ROOT / "hapo_ros")).exists()
        or (package / path.relative_to(ROOT / "hapo_ros")).read_bytes() != path.read_bytes()
    ]
    assert not differing, f"not installed as they are: {differing}; run make setup"


def test_pip_finds_only_the_requirements_of_robosuite_that_are_left_out():
    result = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, timeout=100
    )
    expected = {f"robosuite 1.5.2 requires {name}, which is not installed." for name in UNMET}
    assert set(result.stdout.splitlines()) == expected, result.stdout + result.stderr


@pytest.mark.parametrize("path", INTERFACES, ids=lambda path: path.name)
def test_interface_is_generated_and_shipped_as_data(path):
    kind = path.suffix[1:]
    module = importlib.import_module(f"hapo_ros.{kind}")
    assert hasattr(module, path.stem)
    shipped = resource(f"{kind}/{path.name}")
    assert not shipped.is_relative_to(ROOT / kind)
    assert shipped.read_bytes() == path.read_bytes()


def test_no_interface_is_shipped_that_the_checkout_does_not_have():
    folder = resource("msg").parent
    shipped = {path.name for path in folder.rglob("*") if path.is_file()}
    assert shipped == {path.name for path in INTERFACES}


def test_a_missing_resource_is_refused_with_a_sentence():
    with pytest.raises(FileNotFoundError, match="not part of this installation"):
        resource("config/there is no such file.yaml")


def test_versions_agree():
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    assert manifest.findtext("version") == hapo_ros.__version__
    assert importlib.metadata.version("hapo_ros") == hapo_ros.__version__
    # pyproject.toml reads the package's own.
    project = (ROOT / "pyproject.toml").read_text()
    assert 'version = { attr = "hapo_ros.__version__" }' in project
    assert f"## [{hapo_ros.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_node_executable_has_its_module():
    for script in sorted((ROOT / "scripts" / "nodes").iterdir()):
        assert script.stat().st_mode & 0o111, f"{script.name} is not executable"
        assert f"from hapo_ros.nodes.{script.name} import main" in script.read_text()
        assert (ROOT / "hapo_ros" / "nodes" / f"{script.name}.py").exists(), script.name


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="not in a virtual environment")
def test_executables_start_the_python_of_the_installation():
    prefix = Path(sys.prefix)
    names = [path.name for path in (ROOT / "scripts" / "nodes").iterdir()]
    for path in [prefix / "bin" / "hapo"] + [prefix / "lib" / "hapo_ros" / name for name in names]:
        start = path.read_text()[:600]
        assert str(prefix / "bin" / "python") in start, f"{path} does not start {sys.executable}"


def test_only_nodes_and_launch_import_rclpy():
    offending = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if "nodes" not in path.parts and within(imported_by(path), "rclpy")
    ]
    assert not offending


def test_nothing_imports_the_nodes():
    offending = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if "nodes" not in path.parts and within(imported_by(path), "hapo_ros.nodes")
    ]
    assert not offending


def test_labels_and_arbitration_import_numpy_at_most():
    allowed = set(sys.stdlib_module_names) | {"numpy", "hapo_ros"}
    for path in MODULES:
        if path.name == "labels.py" or "arbitration" in path.parts:
            names = imported_by(path)
            assert {name.split(".")[0] for name in names} <= allowed, path
            own = within(names, "hapo_ros") - {"hapo_ros"}
            assert own == within(own, "hapo_ros.labels") | within(own, "hapo_ros.arbitration"), path


def test_the_simulation_is_needed_by_no_other_package():
    for path in MODULES:
        folder = path.relative_to(ROOT / "hapo_ros").parts[0]
        if folder in ("arbitration", "devices", "episodes", "learning", "policies", "review"):
            assert not within(imported_by(path), "hapo_ros.sim"), path


def test_importing_hapo_ros_is_instant():
    heavy = {"torch", "transformers", "rclpy", "robosuite", "mujoco", "rosbags", "cv2", "numpy"}
    code = f"import sys, hapo_ros; print(*sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("name", ["pypi", "jazzy"])
def test_constraints_pin_every_version(name):
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    pinned = re.compile(r"[a-z0-9.-]+==[0-9][^ ]*( ; python_full_version .*)?")
    assert not [line for line in pins if not pinned.fullmatch(line)]
    assert not [line for line in pins if "+cpu" in line]


def test_every_library_that_is_imported_is_required():
    """requirements/ names what the package imports itself, not only what brings it along."""
    names = {"cv2": "opencv-python-headless", "yaml": "pyyaml", "PIL": "pillow"}
    names |= {"ruamel": "ruamel-yaml", "OpenGL": "pyopengl"}
    required = {"robosuite"}  # installed alone; see requirements/sim.txt
    for file in ("core", "sim"):
        text = (ROOT / "requirements" / f"{file}.txt").read_text()
        required |= set(re.findall(r"^[a-z0-9-]+", text, re.M))
    own = {"hapo_ros", "rclpy", "easyhid"} | set(sys.stdlib_module_names)  # easyhid: pyspacemouse's
    for path in MODULES:
        if "nodes" not in path.parts:
            names_imported = {name.split(".")[0] for name in imported_by(path)} - own
            missing = {names.get(name, name) for name in names_imported} - required
            assert not missing, f"{path.relative_to(ROOT)} imports {missing}"


ROSDEP = {  # requirement -> its rosdep key, where there is one
    "numpy": "python3-numpy",
    "opencv-python-headless": "python3-opencv",
    "pillow": "python3-pil",
    "pyyaml": "python3-yaml",
    "rich": "python3-rich",
    "ruamel-yaml": "python3-ruamel.yaml",
    "scipy": "python3-scipy",
    "termcolor": "python3-termcolor",
    "tqdm": "python3-tqdm",
}


def test_every_requirement_is_a_rosdep_key_or_is_named_beside_it_in_the_readme():
    required = {"robosuite"}
    for file in ("core", "sim"):
        text = (ROOT / "requirements" / f"{file}.txt").read_text()
        required |= set(re.findall(r"^[a-z0-9-]+", text, re.M))
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    keys = {each.text for each in manifest.findall("exec_depend")}
    assert {key for key in keys if key.startswith("python3-")} == set(ROSDEP.values())
    readme = " ".join((ROOT / "README.md").read_text().split())
    named = re.search(r"It has no key for ([^:]+):", readme)[1]
    assert set(re.split(r", | and ", named)) == required - set(ROSDEP)


def test_every_ros_package_that_is_depended_upon_is_used():
    """diagnostic_msgs is for /diagnostics, which comes next."""
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    depended = {each.text for each in manifest.findall("depend")} - {"diagnostic_msgs"}
    used = {name.split(".")[0] for path in MODULES for name in imported_by(path)}
    used |= set(re.findall(r"^(\w+)/", "".join(p.read_text() for p in INTERFACES), re.M))
    used |= {"action_msgs", "builtin_interfaces"}  # what actions are made of
    assert depended <= used
    tests = {each.text for each in manifest.findall("test_depend")}
    assert tests == {"launch_pytest", "python3-pytest", "python3-hypothesis"}


def test_everything_installed_is_pinned():
    """Whatever pip put into this environment came from constraints/pypi.txt."""

    def plain(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    text = (ROOT / "constraints" / "pypi.txt").read_text()
    pinned = {plain(line.split("==")[0]) for line in text.splitlines() if "==" in line}
    by_pip = {
        plain(distribution.metadata["Name"])
        for distribution in importlib.metadata.distributions()
        if distribution.read_text("INSTALLER") == "pip\n"
    }
    assert by_pip - pinned <= {"pip", "setuptools"}


def test_a_wheel_without_ros_holds_the_core_and_the_data_and_no_nodes(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("hapo_ros", "msg", "srv", "action", "config", "models", "requirements"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "-w", tmp_path, source], check=True, timeout=100, cwd=tmp_path)
    (wheel,) = tmp_path.glob("hapo_ros-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in INTERFACES:
        assert f"hapo_ros/interfaces/{path.suffix[1:]}/{path.name}" in names
    for path in MODULES:
        relative = str(path.relative_to(ROOT))
        assert (relative in names) == ("nodes" not in path.parts), relative
    for folder in ("config", "models"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.name != ".gitkeep":
                assert f"hapo_ros/{path.relative_to(ROOT)}" in names
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "hapo = hapo_ros.cli:main" in text


def test_pre_commit_runs_the_ruff_of_the_constraints():
    pinned = re.search(r"^ruff==(\S+)$", (ROOT / "constraints" / "pypi.txt").read_text(), re.M)
    assert f"rev: v{pinned[1]} " in (ROOT / ".pre-commit-config.yaml").read_text()
