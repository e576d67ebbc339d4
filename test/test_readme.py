"""README.md says what the code does: diagram, tables, commands.

``python test_readme.py`` writes the tables anew that are made from the code.
"""

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from hapo_ros import cli, labels, topics
from hapo_ros.arbitration import TRANSITIONS, Event, Trigger
from hapo_ros.deployment import ARGUMENTS, describe, parse
from hapo_ros.learning.methods import METHODS, resolve
from hapo_ros.parameters import PARAMETERS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
NODES = sorted(path.name for path in (ROOT / "scripts" / "nodes").iterdir())


# The tables that are made from the code


def value_text(value) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return "empty" if value == "" else f"`{value}`"


def parameter_table(node: str) -> str:
    """A node's PARAMETERS as a table; those with an asterisk are filled in by a deployment."""
    simulated = {"operator": "simulated"}
    nodes = (*describe(simulated | {"robot": "simulated"}).nodes, *describe(simulated).nodes)
    spec = {n.name: n for n in nodes}.get(node)
    rows = ["| parameter | default | range | what it is |", "| --- | --- | --- | --- |"]
    for parameter in PARAMETERS[node]:
        bounds = ", ".join(f"`{choice}`" for choice in parameter.choices)
        if parameter.minimum is not None and parameter.maximum is not None:
            bounds = (
                f"{parameter.minimum:.10g} to {parameter.maximum:.10g} {parameter.unit}".strip()
            )
        mark = " *" if spec and parameter.name in spec.parameters else ""
        cells = f"`{parameter.name}`{mark}", value_text(parameter.default), bounds, parameter.text
        rows.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(rows)


def argument_table() -> str:
    """The arguments of a deployment."""
    rows = ["| argument | default | what it is |", "| --- | --- | --- |"]
    for argument in ARGUMENTS:
        choices = ", ".join(f"`{choice}`" for choice in argument.choices)
        text = f"{argument.text}: {choices}" if choices else argument.text
        rows.append(f"| `{argument.name}` | {value_text(argument.default)} | {text} |")
    return "\n".join(rows)


def made_from_code() -> dict[str, str]:
    """Table by the comment that begins its block in the README."""
    tables = {f"parameters of {node}": parameter_table(node) for node in NODES}
    return tables | {"arguments": argument_table()}


def block(begin: str) -> re.Pattern:
    """Matches a block of the README; its group 1 is what stands in it."""
    end = "parameters" if begin.startswith("parameters") else begin
    return re.compile(rf"<!-- {begin} -->\n(.*?)<!-- end of {end} -->", re.DOTALL)


def write() -> None:
    """Write the tables into README.md."""
    text = README.read_text()
    for begin, table in made_from_code().items():
        old = block(begin).search(text)
        text = text[: old.start(1)] + table + "\n" + text[old.end(1) :]
    README.write_text(text)


# Reading it


def section(title: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    text = README.read_text()
    found = re.search(rf"^(#+) {re.escape(title)}\n", text, re.M)
    assert found, f"there is no section {title!r}"
    following = re.compile(rf"^#{{1,{len(found[1])}}} ", re.M).search(text, found.end())
    return text[found.end() : following.start() if following else None]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables in a text, without their headings."""
    tables = re.findall(r"^\|.*\n\| ---.*\n((?:\|.*\n)*)", text, re.M)
    lines = [line for table in tables for line in table.splitlines()]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def shell_lines() -> list[str]:
    """The commands of the README's shell blocks, joined where a line goes on."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def commands(start: str) -> list[list[str]]:
    """Words of the shell commands that begin so, a path before it or not."""
    words = [shlex.split(line) for line in shell_lines()]
    first = start.split()
    return [
        line for line in words if [line[0].rpartition("/")[2], *line[1:]][: len(first)] == first
    ]


def inline_commands(name: str) -> list[str]:
    """What follows a command's name in code spans: ``hapo info --k 20 runs/bags``."""
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", README.read_text())
    return [span.split(f"{name} ", 1)[1] for span in spans if re.match(rf"(\S*/)?{name} ", span)]


def test_the_tables_made_from_the_code_are_what_the_code_says():
    text = README.read_text()
    for begin, table in made_from_code().items():
        found = block(begin).search(text)
        assert found, f"README.md has no block <!-- {begin} -->"
        assert found[1].strip() == table, f"{begin}: run `python test_readme.py`"


def test_the_authority_diagram_is_the_transition_table():
    diagram = block("authority diagram").search(README.read_text())[1]
    drawn = set()
    for line in diagram.splitlines():
        if found := re.fullmatch(r"\s*(\w+) --> (\w+) : (.+)", line):
            triggers = found[3].split("<br/>")
            drawn |= {(found[1], trigger, found[2]) for trigger in triggers}
            assert len(set(triggers)) == len(triggers)
        else:
            assert "-->" not in line or line.strip() == "[*] --> HOLD", line
    table = {
        (before.name, trigger.name, after.name)
        for (before, trigger), (after, _) in TRANSITIONS.items()
        if after is not before
    }
    assert drawn == table


def test_every_trigger_is_explained_once():
    explained = [code(row[0])[0] for row in rows(section("States of authority"))]
    assert sorted(explained) == sorted(trigger.name for trigger in Trigger)


def test_every_event_is_raised_by_a_node():
    """What comes from outside the state machine is made from ``Event`` by a node."""
    nodes = "".join(path.read_text() for path in (ROOT / "hapo_ros" / "nodes").glob("*.py"))
    assert [event.name for event in Event if f"Event.{event.name}" not in nodes] == []


def test_the_labels_are_those_of_the_code():
    said = {int(number): name for number, name, _ in rows(section("Labels"))}
    assert said == labels.NAMES


def test_the_methods_are_those_of_the_code():
    said = [code(row[0])[0] for row in rows(section("Learning"))]
    assert sorted(said) == sorted(set(METHODS) - {"bc"})


def test_the_settings_in_the_text_are_the_defaults():
    from hapo_ros.demo import SETTINGS

    text, own = " ".join(section("Learning").split()), resolve("hapo")
    assert own["parameters"] == "lora" and SETTINGS["parameters"] == "full"
    assert (
        f"By default LoRA of rank {own['lora_rank']}, {own['steps']} steps of {own['batch_size']} "
        f"samples, learning rate {own['lr']:g};" in text
    )
    assert f"(The demo trains all parameters, at {SETTINGS['lr']:g}.)" in text
    assert "from `habc` on in this table 256 samples, of `tpo` 8 takeovers." in text
    listed = [code(row[0])[0] for row in rows(section("Learning"))]
    sizes = {name: resolve(name)["batch_size"] for name in listed}
    later = listed[listed.index("habc") :]
    assert sizes == dict.fromkeys(listed, 32) | dict.fromkeys(later, 256) | {"tpo": 8}
    anchored = resolve("hapo_anchored")
    assert f"a behaviour-cloning term of weight {anchored['bc_weight']:g} on" in text
    assert f"log-ratio is below {anchored['undesirable_floor']:g} already" in text


def made_by(call: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Node -> name on the graph -> (class, QoS), of the calls of ``create_publisher`` and such.

    Without the topics that a robot's file names.
    """
    found: dict[str, dict[str, tuple[str, str]]] = {node: {} for node in NODES}
    for node in NODES:
        tree = ast.parse((ROOT / "hapo_ros" / "nodes" / f"{node}.py").read_text())
        for each in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            words = [ast.unparse(argument) for argument in each.args]
            if ast.unparse(each.func).rpartition(".")[2] != call:
                continue
            words = words[1:] if words[0] == "self" else words
            known = {"topics.image(camera)": "observation/CAMERA/image", "'/clock'": "/clock"}
            if words[1].startswith("topics."):
                known.setdefault(words[1], getattr(topics, words[1].partition(".")[2], None))
            elif words[1] not in known:
                continue
            name = known[words[1]]
            found[node][name] = words[0].rpartition(".")[2], words[2] if len(words) > 2 else ""
    return found


def test_every_topic_is_in_the_table_with_its_type_publishers_and_qos():
    published = made_by("create_publisher")
    published["keyboard"] |= published["spacemouse"]  # both are OperatorNode's
    nodes_of, qos = {}, {}
    for node, names in published.items():
        for name, (_, how) in names.items():
            nodes_of.setdefault(name, set()).add(node)
            qos[name] = how
    types = {name: type_ for name, type_ in topics.TYPES.items() if name in nodes_of}
    types |= {
        "observation/CAMERA/image": topics.recorded(["x"], False)[topics.image("x")],
        "/clock": "rosgraph_msgs/msg/Clock",
    }
    said = {code(row[0])[0]: row[1:] for row in rows(section("Topics"))}
    assert said.keys() == types.keys() == nodes_of.keys()
    for name, (type_, nodes, how) in said.items():
        assert code(type_) == [types[name]], name
        assert set(code(nodes)) == nodes_of[name], name
        assert code(how) == [qos[name]], name


def test_the_qos_profiles_are_what_the_readme_says():
    common = import_module("hapo_ros.nodes.common")
    from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

    profiles = (common.RECORD, common.COMMAND, common.IMAGES, common.LATCHED, common.STATUS)
    assert [profile.depth for profile in profiles] == [200, 200, 20, 1, 1]
    assert common.COMMAND.deadline.nanoseconds == 1_000_000_000
    assert common.COMMAND.lifespan.nanoseconds == 5_000_000_000
    assert {profile.reliability for profile in profiles} == {ReliabilityPolicy.RELIABLE}
    for profile in (common.LATCHED, common.STATUS):
        assert profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    assert common.STATUS.liveliness_lease_duration.nanoseconds == 1_000_000_000


def test_every_service_and_action_is_in_the_table_with_its_type_and_node():
    said = {code(row[0])[0]: (code(row[1])[0], code(row[2])[0])
            for row in rows(section("Services and actions"))}  # fmt: skip
    offered = {
        name: (f"hapo_ros/{kind}/{class_}", node)
        for kind, call in (("srv", "create_service"), ("action", "ActionServer"))
        for node, names in made_by(call).items()
        for name, (class_, _) in names.items()
    }
    assert said == offered
    for type_, _ in said.values():
        package, kind, name = type_.split("/")
        assert hasattr(import_module(f"{package}.{kind}"), name)


def test_every_command_of_hapo_is_listed_and_no_other():
    (subcommands,) = (a for a in cli._parser()._actions if hasattr(a, "choices") and a.choices)
    said = [code(row[0])[0].removeprefix("hapo ") for row in rows(section("Command line"))]
    assert sorted(said) == sorted(subcommands.choices)
    for rest in inline_commands("hapo"):
        assert rest.split()[0] in subcommands.choices, f"hapo {rest}"


@pytest.mark.parametrize("words", commands("hapo"), ids=" ".join)
def test_a_hapo_command_can_be_given(words):
    arguments = cli._parser().parse_args(words[1:])
    if arguments.command == "deploy":
        check_deployment(arguments.arguments)


@pytest.mark.parametrize(
    "rest", [r for r in inline_commands("hapo") if "..." not in r and len(r.split()) > 1]
)
def test_a_hapo_command_in_the_text_can_be_given(rest):
    arguments = cli._parser().parse_args(rest.split())
    if arguments.command == "deploy":
        check_deployment(arguments.arguments)


def check_deployment(words) -> None:
    """The arguments are known; checkpoints that a reader will have made are not looked at."""
    given = parse(words)
    known = {argument.name: argument for argument in ARGUMENTS}
    assert given.keys() <= known.keys()
    describe({name: value for name, value in given.items() if name != "policy"})


def test_every_launch_of_a_deployment_has_known_arguments():
    start = "ros2 launch hapo_ros deploy.launch.py"
    launches = commands(start)
    for words in launches:
        check_deployment([word for word in words[4:] if word != "--show-args"])
    assert launches and (ROOT / "launch" / "deploy.launch.py").exists()


def test_every_node_that_is_run_by_hand_exists():
    run = [rest.split() for rest in inline_commands("ros2") if rest.startswith("run ")]
    assert run
    for _, package, node in run:
        assert package == "hapo_ros" and node in NODES


def test_the_keys_of_the_console_are_those_of_the_code():
    from hapo_ros.console.app import KEYS

    said = [key for row in rows(section("The console")) for key in code(row[0])]
    letters = {keys.split(",")[0] for keys, _ in KEYS.values()}
    assert set(said) == letters | {"?", "q"}


def test_every_fault_names_the_tests_that_inject_it():
    """The first 34 are the project's promises, in their order."""
    table = [row for row in rows(section("Faults")) if row[0].isdigit()]
    faults = [row for row in table if len(row) == 3]
    tests = [row for row in table if len(row) == 2]
    numbers = [str(number) for number in range(1, len(faults) + 1)]
    assert [row[0] for row in faults] == [row[0] for row in tests] == numbers
    assert len(numbers) >= 34
    for _, named in tests:
        files = re.findall(r"(test_\w+\.py): ([^;]+)", named)
        assert files, named
        for file, names in files:
            there = set(re.findall(r"^def test_(\w+)", (ROOT / "test" / file).read_text(), re.M))
            assert code(names) and set(code(names)) <= there, (file, set(code(names)) - there)


def test_every_service_call_names_a_service_its_type_and_its_fields():
    from ruamel.yaml import YAML

    calls = commands("ros2 service call")
    assert calls
    offered = {
        f"/{name}": type_
        for node in made_by("create_service").values()
        for name, (type_, _) in node.items()
    }
    for _, _, _, name, type_, text in calls:
        if not type_.startswith("hapo_ros/"):
            continue  # a robot's own
        assert type_ == f"hapo_ros/srv/{offered[name]}"
        fields = YAML(typ="safe").load(text)
        getattr(import_module("hapo_ros.srv"), offered[name]).Request(**fields)


def test_every_line_for_the_gateway_is_understood():
    import json

    from hapo_ros.nodes import gateway

    lines = re.search(r"```json\n(.*?)```", README.read_text(), re.S)[1].splitlines()
    for line in lines:
        said = json.loads(line)
        assert isinstance(said.pop("id"), int)
        type_, _ = gateway._SERVICES[said.pop("call")]
        type_.Request(**said)
    requests = import_module("hapo_ros.srv").RequestAuthority.Request
    meant = [requests.RESUME, requests.HOLD, requests.ESTOP, requests.CLEAR_FAULT]
    assert "`event` is 4 resume, 5 hold, 6 emergency stop, 7 clear a fault." in README.read_text()
    assert meant == [4, 5, 6, 7]


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    named = [line[1] for line in commands("make")]
    named += [rest.split()[0] for rest in inline_commands("make")]
    assert {"demo", "test"} <= set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"


def test_every_file_and_heading_that_is_linked_to_exists():
    text = README.read_text()
    headings = {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_the_shipped_policy_is_as_good_as_it_is_said_to_be():
    import json

    record = json.loads((ROOT / "docs" / "base_policy.json").read_text())
    (chosen,) = (point for point in record["curve"] if point["steps"] == record["chosen"])
    first, last = record["demonstration_seeds"]
    text = " ".join(section("Learning").split())
    assert (
        f"saw {last - first + 1} demonstrations (behaviour cloning, {chosen['steps']} steps) and "
        f"lifts the cube on {chosen['successes']} of {chosen['n']} selection seeds" in text
    )


if __name__ == "__main__":
    write()
