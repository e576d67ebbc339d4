"""A deployment as data: which nodes, with what, restarted and stopped how; and the launch file."""

import ast
import json
import os
import py_compile
import runpy
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from hapo_ros.arbitration import ArbiterConfig
from hapo_ros.deployment import ARGUMENTS, Deployment, NodeSpec, Restart, describe, parse
from hapo_ros.devices import DeviceLost, spacemouse
from hapo_ros.parameters import PARAMETERS
from hapo_ros.policies import checkpoint
from hapo_ros.policies.promoted import becoming_current, current, written_ns
from hapo_ros.policies.small import Normalisation
from hapo_ros.policies.tiny_vla import TinyVla, TinyVlaConfig
from hapo_ros.policies.tokenizers import Words
from hapo_ros.resources import resource
from hapo_ros.sim.operator import OperatorConfig
from hapo_ros.supervisor import DeploymentError, _yaml

ROOT = Path(__file__).resolve().parent.parent
LAUNCH_FILE = ROOT / "launch" / "deploy.launch.py"
OPERATORS = ("spacemouse", "keyboard", "simulated", "none")
NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def make_checkpoint(folder: Path, cameras: dict, object_state: int) -> Path:
    config = TinyVlaConfig(cameras, object_state, NAMES, width=16, blocks=1)
    rng = np.random.default_rng(0)
    state = rng.normal(size=(20, object_state)).astype(np.float32) if object_state else None
    normalisation = Normalisation.fit(7, rng.normal(size=(20, 11)).astype(np.float32), state)
    torch.manual_seed(0)
    policy = TinyVla(config, normalisation, Words.fit(["lift the cube"]))
    checkpoint.save(policy, folder, {"method": "none"})
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """A checkpoint that sees two cameras of 64 x 64."""
    folder = tmp_path_factory.mktemp("checkpoints") / "images"
    return make_checkpoint(folder, {"agentview": (64, 64), "wrist": (64, 64)}, 0)


@pytest.fixture(scope="module")
def state_policy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "state"
    return make_checkpoint(folder, {}, 10)


def nodes_of(deployment: Deployment) -> dict[str, NodeSpec]:
    return {spec.name: spec for spec in deployment.nodes}


def deploy(policy: Path, **arguments) -> dict[str, NodeSpec]:
    return nodes_of(describe({"policy": str(policy), **arguments}))


# The whole, once


def test_a_deployment_with_a_simulated_operator_in_full(policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    deployment = describe(
        {"policy": str(policy), "operator": "simulated", "episodes": "40", "takeovers": "8"}
    )
    seen = {"cameras": ["agentview", "wrist"], "object_state": False, "lock_step": True}
    settings = {
        "robot": "simulation",
        "arbiter": asdict(ArbiterConfig(lock_step=True)),
        "operator": {"kind": "simulated"} | asdict(OperatorConfig()),
        "disturbance": None,
    }
    readers = ["policy", "arbiter", "recorder", "simulated_operator"]
    again = Restart(times=3, within_s=60.0, delay_s=0.2)
    assert deployment.nodes == (
        NodeSpec(
            "recorder",
            "recorder",
            seen
            | {
                "operator": True,
                "root": str(tmp_path / "runs/bags"),
                "settings_json": json.dumps(settings),
            },
            restart=again,
            stop_order=3,
            stop_timeout_s=15.0,
        ),
        NodeSpec(
            "robosuite_bridge",
            "robosuite_bridge",
            seen
            | {
                "task": "Lift",
                "image_size": 64,
                "tick_readers": readers,
                "image_readers": ["policy", "recorder"],
            },
            essential=True,
            stop_order=2,
        ),
        NodeSpec(
            "arbiter",
            "arbiter",
            {"lock_step": True, "readers": 2, "give_up_ticks_s": 60.0},
            restart=again,
            stop_order=1,
        ),
        NodeSpec(
            "policy",
            "policy",
            {
                "checkpoint": str(policy),
                "promoted": str(tmp_path / "runs/checkpoints"),
                "promoted_ignored_ns": 0,
                "deadline_s": 0.0,
                "readers": 2,
            },
            restart=again,
        ),
        NodeSpec(
            "simulated_operator",
            "simulated_operator",
            {
                "task": "Lift",
                "lock_step": True,
                "episodes": 40,
                "takeovers": 8,
                "first_seed": 1,
            },
            restart=Restart(times=3, within_s=600.0, delay_s=0.2),
            done=True,
        ),
        NodeSpec("optimizer", "optimizer", stop_timeout_s=15.0),
    )
    assert deployment.lock_step
    assert deployment.parameter_file == resource("config/deployment.yaml").resolve()
    assert deployment.arguments["episodes"] == "40" and deployment.arguments["task"] == "Lift"


def test_describing_starts_and_writes_nothing(policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    describe({"policy": str(policy), "operator": "simulated"})
    assert list(tmp_path.iterdir()) == []


def test_without_arguments_the_shipped_policy_is_deployed_with_a_spacemouse():
    nodes = nodes_of(describe())
    assert Path(nodes["policy"].parameters["checkpoint"]) == resource("models/lift_base").resolve()
    assert "spacemouse" in nodes


# Operators


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_its_node_and_no_other(policy, operator):
    nodes = deploy(policy, operator=operator)
    expected = {
        "spacemouse": {"spacemouse"},
        "keyboard": {"keyboard"},
        "simulated": {"simulated_operator"},
        "none": set(),
    }[operator]
    always = {"recorder", "robosuite_bridge", "arbiter", "policy", "optimizer"}
    assert set(nodes) == always | expected


@pytest.mark.parametrize("operator", OPERATORS)
def test_only_without_an_operator_may_the_policy_act_though_no_one_can_take_over(policy, operator):
    arbiter = deploy(policy, operator=operator)["arbiter"].parameters
    assert arbiter.get("on_device_lost") == ("continue" if operator == "none" else None)


def test_the_keyboard_gets_the_terminal_and_nothing_else_does(policy):
    for operator in OPERATORS:
        terminals = [s.name for s in deploy(policy, operator=operator).values() if s.terminal]
        assert terminals == (["keyboard"] if operator == "keyboard" else [])


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_robot_and_the_keyboard_are_essential_and_nothing_else(policy, operator):
    essential = {s.name for s in deploy(policy, operator=operator).values() if s.essential}
    assert essential == {"robosuite_bridge"} | ({operator} & {"keyboard"})


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_is_restarted_is_not_essential_and_at_most_three_times_a_minute(policy, operator):
    for spec in deploy(policy, operator=operator).values():
        if spec.restart is not None:
            assert not spec.essential
            within_s = 600.0 if spec.name == "simulated_operator" else 60.0
            assert (spec.restart.times, spec.restart.within_s) == (3, within_s)
    restarted = {s.name for s in deploy(policy, operator=operator).values() if s.restart}
    hand = {"spacemouse": {"spacemouse"}, "simulated": {"simulated_operator"}}.get(operator, set())
    assert restarted == {"arbiter", "policy", "recorder"} | hand


@pytest.mark.parametrize("operator", OPERATORS)
def test_only_a_spacemouse_that_is_missing_at_the_start_is_not_tried_again(policy, operator):
    refusing = {
        n for n, s in deploy(policy, operator=operator).items() if s.restart and s.restart.refusal_s
    }
    assert refusing == {operator} & {"spacemouse"}


def test_only_the_simulated_operator_is_ever_done(policy):
    for operator in OPERATORS:
        done = [s.name for s in deploy(policy, operator=operator).values() if s.done]
        assert done == (["simulated_operator"] if operator == "simulated" else [])


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_command_stops_before_the_robot_and_the_recorder_last_with_time_to_flush(
    policy, operator
):
    nodes = deploy(policy, operator=operator)
    order = {name: spec.stop_order for name, spec in nodes.items()}
    assert order["policy"] < order["arbiter"] < order["robosuite_bridge"] < order["recorder"]
    for name in {"spacemouse", "keyboard", "simulated_operator"} & set(nodes):
        assert order[name] < order["arbiter"]
    longest = max(spec.stop_timeout_s for spec in nodes.values())
    assert nodes["recorder"].stop_timeout_s == longest >= 15.0


def test_the_recorder_starts_first_so_that_it_misses_nothing(policy):
    assert describe({"policy": str(policy)}).nodes[0].name == "recorder"


def test_the_optimizer_is_optional(policy):
    assert "optimizer" not in deploy(policy, optimizer="false")
    optimizer = deploy(policy)["optimizer"]
    assert optimizer.restart is None and not optimizer.essential


# Lock-step


@pytest.mark.parametrize(
    ("operator", "lock_step", "expected"),
    [
        ("simulated", "auto", True),
        ("simulated", "true", True),
        ("simulated", "false", False),
        ("spacemouse", "auto", False),
        ("spacemouse", "false", False),
        ("keyboard", "auto", False),
        ("none", "auto", False),
    ],
)
def test_lock_step_is_for_a_simulated_operator_and_everyone_is_told_the_same(
    policy, operator, lock_step, expected
):
    deployment = describe({"policy": str(policy), "operator": operator, "lock_step": lock_step})
    nodes = nodes_of(deployment)
    assert deployment.lock_step is expected
    told = {
        name: s.parameters["lock_step"] for name, s in nodes.items() if "lock_step" in s.parameters
    }
    assert told == dict.fromkeys(told, expected)
    assert {"recorder", "robosuite_bridge", "arbiter"} <= set(told)
    for name in ("arbiter", "policy"):  # in lock-step nothing may be lost at the beginning
        assert nodes[name].parameters["readers"] == (2 if expected else 0)
    assert nodes["policy"].parameters["deadline_s"] == (0.0 if expected else 0.04)
    # By name: whoever else listens does not stand in for one of them.
    robot = nodes["robosuite_bridge"].parameters
    assert set(robot["tick_readers"]) | set(robot["image_readers"]) <= set(nodes)
    readers = {"policy", "arbiter", "recorder", "simulated_operator"} & set(nodes)
    assert set(robot["tick_readers"]) == readers


@pytest.mark.parametrize("operator", ["spacemouse", "keyboard", "none"])
def test_lock_step_with_a_person_is_refused_with_a_sentence(policy, operator):
    with pytest.raises(ValueError, match="lock_step:=true needs operator:=simulated"):
        describe({"policy": str(policy), "operator": operator, "lock_step": "true"})


# What the policy sees


def test_cameras_and_image_size_are_those_of_the_checkpoint(policy):
    nodes = deploy(policy)
    for name in ("recorder", "robosuite_bridge"):
        assert nodes[name].parameters["cameras"] == ["agentview", "wrist"]
        assert nodes[name].parameters["object_state"] is False
    assert nodes["robosuite_bridge"].parameters["image_size"] == 64


def test_a_state_policy_gets_the_object_state_and_no_cameras(state_policy):
    nodes = deploy(state_policy)
    for name in ("recorder", "robosuite_bridge"):
        assert nodes[name].parameters["cameras"] == [""]  # a parameter cannot be an empty list
        assert nodes[name].parameters["object_state"] is True


@pytest.mark.parametrize(
    "cameras", [{"a": (84, 84), "b": (64, 64)}, {"a": (84, 96)}], ids=["two sizes", "not square"]
)
def test_a_checkpoint_that_the_simulation_cannot_render_for_is_refused(policy, tmp_path, cameras):
    made = make_checkpoint(tmp_path / "policy", {"a": (84, 84)}, 0)
    config = json.loads((made / "config.json").read_text())
    config["config"]["cameras"] = cameras
    (made / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="one square size"):
        deploy(made)


# A robot


def deploy_robot(policy: Path, robot: str = "simulated", **arguments) -> dict[str, NodeSpec]:
    """The nodes with a robot whose cameras are as large as the policy wants them."""
    yaml = YAML(typ="safe")
    data = yaml.load(resource(f"config/robots/{robot}.yaml").read_text())
    for camera in data["cameras"].values():
        camera["size"] = [64, 64]
    yaml.dump(data, policy.parent / f"{robot}.yaml")
    return deploy(policy, robot=str(policy.parent / f"{robot}.yaml"), **arguments)


def test_a_robot_has_two_sides_in_place_of_the_simulation(policy):
    nodes = deploy_robot(policy, "franka", operator="spacemouse")
    sides = {"observation_assembler", "robot_output"}
    assert set(nodes) == {"recorder", *sides, "arbiter", "policy", "spacemouse", "optimizer"}
    assembler, output = (nodes[name] for name in sorted(sides))
    file = str(policy.parent / "franka.yaml")
    assert assembler.parameters == {
        "robot": file,
        "task": "Lift",
        "instruction": "lift the cube",
        "cameras": ["agentview", "wrist"],
        "tick_readers": ["policy", "arbiter", "recorder", "robot_output"],
        "image_readers": ["policy", "recorder"],
    }
    assert output.parameters == {"robot": file, "dry_run": False}
    assert assembler.restart == Restart(refusal_s=10.0) and not assembler.essential
    # A human has to be able to move the arm away; the command stops before it.
    assert output.restart == Restart() and not output.essential
    order = {name: spec.stop_order for name, spec in nodes.items()}
    assert order["spacemouse"] < order["arbiter"] < order["robot_output"] < order["recorder"]
    assert {s.parameters.get("lock_step", False) for s in nodes.values()} == {False}


def test_arbiter_and_device_know_the_speeds_and_the_rate_of_the_robot(policy):
    for operator in ("spacemouse", "keyboard"):
        nodes = deploy_robot(policy, "franka", operator=operator)
        speeds = {"linear_scale_m_s": 0.25, "angular_scale_rad_s": 0.8}
        assert nodes[operator].parameters == speeds
        expected = {"control_period_s": 0.05, "policy_deadline_s": 0.04}
        limits = {
            "max_speed_m_s": [0.25] * 3,
            "max_rate_rad_s": [0.8] * 3,
            "max_acceleration_m_s2": 2.0,
            "max_acceleration_rad_s2": 0.0,
            "workspace_min_m": [0.25, -0.4, 0.04],
            "workspace_max_m": [0.75, 0.4, 0.6],
        }
        mode = {"lock_step": False, "readers": 0}
        assert nodes["arbiter"].parameters == mode | speeds | expected | limits
        assert nodes["policy"].parameters["deadline_s"] == expected["policy_deadline_s"]


def test_without_an_operator_no_policy_moves_a_real_arm(policy):
    arbiter = deploy_robot(policy, "franka", operator="none")["arbiter"].parameters
    assert "on_device_lost" not in arbiter  # hold


def test_the_simulated_robot_is_a_robot_that_runs_free_and_has_a_stand_in(policy):
    nodes = deploy_robot(policy, operator="simulated")
    file = str(policy.parent / "simulated.yaml")
    assert nodes["simulated_robot"].parameters == {"robot": file, "task": "Lift"}
    assert nodes["simulated_robot"].essential
    readers = ["policy", "arbiter", "recorder", "robot_output", "simulated_robot"]
    assembler = nodes["observation_assembler"].parameters
    assert assembler["tick_readers"] == [*readers, "simulated_operator"]
    assert nodes["simulated_operator"].parameters["lock_step"] is False
    assembler = deploy_robot(policy)["observation_assembler"].parameters
    assert assembler["tick_readers"] == readers


def test_a_dry_run_is_said_to_the_output_and_written_into_the_recording(policy):
    nodes = deploy_robot(policy, "franka", robot_dry_run="true")
    assert nodes["robot_output"].parameters["dry_run"] is True
    assert json.loads(nodes["recorder"].parameters["settings_json"])["robot_dry_run"] == "true"


def test_a_robot_may_have_a_task_of_its_own_if_it_is_told_what_to_do(policy):
    told = {"task": "fold_towel", "instruction": "fold the towel"}
    assembler = deploy_robot(policy, "franka", **told)["observation_assembler"].parameters
    assert assembler["task"] == "fold_towel" and assembler["instruction"] == "fold the towel"
    with pytest.raises(ValueError, match="There is no task 'fold_towel'"):
        deploy_robot(policy, "franka", task="fold_towel")
    with pytest.raises(ValueError, match="There is no task 'fold_towel'"):
        deploy_robot(policy, "simulated", **told)


def test_what_does_not_go_together_with_a_robot_is_refused(policy, state_policy):
    with pytest.raises(ValueError, match=r"lock_step:=true needs robot:=simulation"):
        deploy_robot(policy, operator="simulated", lock_step="true")
    with pytest.raises(ValueError, match="operator:=simulated needs a simulation"):
        deploy_robot(policy, "franka", operator="simulated")
    wanted = r"needs camera agentview of 64 x 64, camera wrist of 64 x 64; robot simulated has"
    with pytest.raises(ValueError, match=f"{wanted} cameras agentview of 84 x 84"):
        deploy(policy, robot="simulated")
    with pytest.raises(ValueError, match="camera wrist of 64 x 64; robot ur has cameras agentview"):
        deploy_robot(policy, "ur")
    with pytest.raises(ValueError, match="needs an object state"):
        deploy(state_policy, robot="simulated")


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"polcy": "x"}, ValueError, "There is no argument 'polcy'. Nothing is started. Use: task"),
        ({"operator": "joystick"}, ValueError, "operator:=joystick is not known"),
        ({"robot": "panda"}, FileNotFoundError, "There is no robot panda"),
        ({"robot": "mine.yaml"}, FileNotFoundError, "There is no robot mine.yaml"),
        ({"robot_dry_run": "true"}, ValueError, "robot_dry_run:= is for a robot"),
        ({"instruction": "fold it"}, ValueError, "instruction:= is for a robot"),
        ({"lock_step": "yes"}, ValueError, "lock_step:=yes is not known"),
        ({"optimizer": "True"}, ValueError, "optimizer:=True is not known"),
        ({"episodes": "ten"}, ValueError, "episodes must be a whole number, not 'ten'"),
        ({"episodes": "-1"}, ValueError, "episodes must be a whole number"),
        ({"takeovers": "1.5"}, ValueError, "takeovers must be a whole number"),
        ({"first_seed": ""}, ValueError, "first_seed must be a whole number"),
        ({"episodes": "0"}, ValueError, "episodes must lie in 1..1e+06, not 0. Nothing is started"),
        ({"first_seed": str(1 << 40)}, ValueError, "first_seed must lie in 0.."),
        ({"config": "nowhere.yaml"}, FileNotFoundError, "no configuration nowhere.yaml"),
        ({"policy": "nowhere"}, FileNotFoundError, "does not exist"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_used_is_a_sentence(policy, arguments, error, says):
    with pytest.raises(error) as caught:
        describe({"policy": str(policy), **arguments})
    assert says in str(caught.value)
    assert str(caught.value).endswith(".")


def as_json(config) -> dict:
    """A configuration as it comes out of JSON, which has lists and no tuples."""
    return json.loads(json.dumps(asdict(config), allow_nan=False))


def test_a_bag_says_what_the_configuration_says_of_arbiter_and_operator(policy, tmp_path):
    config = tmp_path / "nodes.yaml"
    config.write_text(
        "/**: {ros__parameters: {max_step_m: 0.03, noise: 0.1}}\n"
        "arbiter: {ros__parameters: {handback: release, tick_timeout_s: 0.3}}\n"
        "/simulated_operator: {ros__parameters: {patience_steps: 8, noise: 0.0}}\n"
        "keyboard: {ros__parameters: {deflection: 0.3}}\n"
    )

    def settings(operator):
        nodes = deploy(policy, config=str(config), operator=operator)
        return json.loads(nodes["recorder"].parameters["settings_json"])

    of_arbiter = ArbiterConfig(max_step_m=0.03, handback="release")
    assert settings("simulated")["arbiter"] == as_json(replace(of_arbiter, lock_step=True))
    operator = OperatorConfig(patience_steps=8, noise=0.0)
    assert settings("simulated")["operator"] == {"kind": "simulated"} | asdict(operator)
    assert settings("keyboard")["arbiter"] == as_json(of_arbiter)
    assert settings("keyboard")["operator"]["kind"] == "keyboard"
    assert settings("keyboard")["operator"]["deflection"] == 0.3
    assert settings("none")["operator"] is None
    assert settings("none")["arbiter"]["on_device_lost"] == "continue"


BAD_FILES = {
    "no YAML": ("arbiter: [", "it is no YAML (while parsing"),
    "a binary file": ("\x00\x01", "it is no YAML"),
    "no sections": ("- arbiter", "it holds no sections."),
    "an unknown node": (
        "arbitre: {ros__parameters: {}}",
        "there is no node 'arbitre'; perhaps 'arbiter' is meant.",
    ),
    "a node in a namespace that there is not": (
        "/robot/arbiter: {ros__parameters: {}}",
        "there is no node '/robot/arbiter'",
    ),
    "no ros__parameters": ("arbiter: {status_hz: 5.0}", "the section 'arbiter' is not understood"),
    "parameters that are none": ("arbiter: {ros__parameters: [1]}", "'arbiter' is not understood"),
    "a misspelt parameter": (
        "arbiter: {ros__parameters: {policy_dedline_s: 0.1}}",
        "has no parameter 'policy_dedline_s'; perhaps 'policy_deadline_s' is meant.",
    ),
    "another node's parameter": (
        "policy: {ros__parameters: {handback: release}}",
        "has no parameter 'handback'. There are: checkpoint, promoted",
    ),
    "no parameter of any": ("/**: {ros__parameters: {speed: 1.0}}", "has no parameter 'speed'"),
    "out of range": (
        "arbiter: {ros__parameters: {policy_deadline_s: 9.0}}",
        "policy_deadline_s must lie in 0.001..1 s, not 9.0.",
    ),
    "one of many out of range": (
        "arbiter: {ros__parameters: {max_speed_m_s: [0.5, 0.5, 99.0]}}",
        "max_speed_m_s must lie in",
    ),
    "too few numbers": (
        "arbiter: {ros__parameters: {max_speed_m_s: [0.5]}}",
        "max_speed_m_s must be 3 numbers, not 1.",
    ),
    "a number for a list": (
        "arbiter: {ros__parameters: {max_speed_m_s: 0.5}}",
        "max_speed_m_s must be a list, not 0.5.",
    ),
    "a whole number for a real one": (
        "arbiter: {ros__parameters: {status_hz: 5}}",
        "status_hz must be a number with a decimal point, such as 1.0, not 5.",
    ),
    "text for a number": (
        "recorder: {ros__parameters: {min_free_mib: plenty}}",
        "min_free_mib must be a whole number, not 'plenty'.",
    ),
    "no choice": (
        "arbiter: {ros__parameters: {handback: never}}",
        "handback must be one of button, release, deadman, not 'never'.",
    ),
    "what does not go together": (
        "arbiter: {ros__parameters: {release_threshold: 0.5}}",
        "release_threshold < takeover_threshold",
    ),
}


@pytest.mark.parametrize(("text", "says"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_configuration_that_cannot_be_used_is_a_sentence_before_anything_starts(
    policy, tmp_path, text, says
):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        describe({"policy": str(policy), "config": str(file)})
    assert str(caught.value).startswith(f"{file} cannot be used: ") and says in str(caught.value)
    assert str(caught.value).endswith("Nothing is started. Mend it, or leave config:= out.")


@pytest.mark.parametrize(
    "text",
    ["", "# nothing yet"]
    + ["arbiter: {ros__parameters: }", "arbiter: {ros__parameters: {status_hz: 4e-0}}"]
    + ["/**: {ros__parameters: {lock_step: true}}", "/arbiter: {ros__parameters: {}}"]
    + ["keyboard: {ros__parameters: {deflection: 0.3}}"],
)
def test_a_configuration_that_the_nodes_take_is_taken(policy, tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    deployment = describe({"policy": str(policy), "config": str(file)})
    assert deployment.parameter_file == file


def test_a_folder_is_no_configuration(policy, tmp_path):
    with pytest.raises(FileNotFoundError, match="Nothing is started"):
        describe({"policy": str(policy), "config": str(tmp_path)})


def test_a_folder_that_is_no_checkpoint_is_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        deploy(tmp_path)


def test_words_become_arguments():
    assert parse(["task:=Lift", "bags:=/a:=b", "config:="]) == {
        "task": "Lift",
        "bags": "/a:=b",
        "config": "",
    }
    assert parse([]) == {}


@pytest.mark.parametrize("word", ["task=Lift", "Lift", "--task", ""])
def test_a_word_that_is_no_argument_is_refused_with_an_example(word):
    with pytest.raises(ValueError, match="Write name:=value, such as task:=Lift"):
        parse([word])


def test_every_argument_is_described_and_its_default_is_one_of_its_choices():
    names = [argument.name for argument in ARGUMENTS]
    assert len(set(names)) == len(names)
    for argument in ARGUMENTS:
        assert argument.description.startswith(argument.text) and argument.text
        assert not argument.choices or argument.default in argument.choices


# The nodes behind it


def specs_of_all(policy, state_policy) -> list[NodeSpec]:
    return [
        spec
        for checkpoint_folder in (policy, state_policy)
        for operator in OPERATORS
        for spec in deploy(checkpoint_folder, operator=operator).values()
    ] + list(deploy_robot(policy, operator="simulated").values())


def test_every_executable_is_a_script_and_a_module_with_a_main(policy, state_policy):
    for name in {spec.executable for spec in specs_of_all(policy, state_policy)}:
        script = ROOT / "scripts" / "nodes" / name
        assert f"from hapo_ros.nodes.{name} import main" in script.read_text()
        module = ast.parse((ROOT / "hapo_ros" / "nodes" / f"{name}.py").read_text())
        functions = {item.name for item in module.body if isinstance(item, ast.FunctionDef)}
        assert "main" in functions


def declared(node: str) -> dict:
    return {parameter.name: parameter for parameter in PARAMETERS[node]}


def check_parameters(node: str, given: dict) -> None:
    known = declared(node)
    assert set(given) <= set(known), f"{node} does not declare {set(given) - set(known)}"
    for name, value in given.items():
        assert type(value) is type(known[name].default), f"{name} of {node}"
        assert known[name].problem(value) == ""


def test_every_parameter_of_a_deployment_is_declared_by_its_node(policy, state_policy):
    for spec in specs_of_all(policy, state_policy):
        check_parameters(spec.executable, dict(spec.parameters))


def test_every_parameter_of_the_shipped_file_is_declared_by_its_node(policy, state_policy):
    file = YAML(typ="safe").load(resource("config/deployment.yaml"))
    assert set(file) <= {spec.name for spec in specs_of_all(policy, state_policy)}
    for node, section in file.items():
        assert set(section) == {"ros__parameters"}
        check_parameters(node, section["ros__parameters"])


def test_the_shipped_file_does_not_set_what_the_deployment_decides(policy, state_policy):
    file = YAML(typ="safe").load(resource("config/deployment.yaml"))
    # operator:=none overrides the one, a robot's file the others
    overridden = {"on_device_lost", "control_period_s", "policy_deadline_s"}
    overridden |= {"linear_scale_m_s", "angular_scale_rad_s", "max_speed_m_s", "max_rate_rad_s"}
    for spec in specs_of_all(policy, state_policy):
        in_file = set(file.get(spec.name, {}).get("ros__parameters", {}))
        assert in_file & set(spec.parameters) <= overridden


# Parameters on a command line


def as_yaml(text: str):
    return YAML(typ="safe").load(text)


@pytest.mark.parametrize(
    "value",
    [True, False, 0, -3, 40, 0.05, 1e-05, "", "Lift", "true", "12", "1.5", "null", "~", "it's"]
    + [["agentview", "wrist"], [""], ["it's", "a, b", "[c]"], [1, 2], [True, False]]
    + ["/a b/c: d #e", '{"robot": "simulation", "lock_step": "auto"}', "back\\slash", "größe"],
    ids=repr,
)
def test_a_parameter_arrives_as_it_was_and_in_its_type(value):
    arrived = as_yaml(_yaml(value))
    assert arrived == value and type(arrived) is type(value)


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp"))))
def test_any_line_of_text_arrives_as_it_was(text):
    assert as_yaml(_yaml(text)) == text


# The launch file, where ROS 2's launch is not installed; test/ros has it for real


def test_the_launch_file_compiles(tmp_path):
    py_compile.compile(str(LAUNCH_FILE), cfile=str(tmp_path / "compiled"), doraise=True)


def test_the_launch_file_names_no_argument_and_no_node_of_its_own():
    tree = ast.parse(LAUNCH_FILE.read_text())
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    own = {argument.name for argument in ARGUMENTS} - {"policy"}
    own |= {"arbiter", "policy", "recorder", "robosuite_bridge", "spacemouse", "optimizer"}
    assert not texts & own
    imported = {
        (node.module, name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert {("hapo_ros.deployment", "ARGUMENTS"), ("hapo_ros.deployment", "describe")} <= imported


class Recorded(SimpleNamespace):
    """Stands in for a class of launch: keeps what it was made with."""

    __eq__, __hash__ = object.__eq__, object.__hash__

    def __init__(self, *arguments, **options):
        super().__init__(arguments=arguments, options=options)

    def perform(self, context):
        return context[self.arguments[0]]


@pytest.fixture
def launch_file(monkeypatch):
    """The launch file, with stand-ins for launch that only record."""
    for name, classes in {
        "launch": ["LaunchDescription"],
        "launch.actions": [
            "DeclareLaunchArgument",
            "EmitEvent",
            "LogInfo",
            "OpaqueFunction",
            "RegisterEventHandler",
        ],
        "launch.event_handlers": ["OnProcessExit"],
        "launch.events": ["Shutdown"],
        "launch.substitutions": ["LaunchConfiguration"],
        "launch_ros": [],
        "launch_ros.actions": ["Node"],
    }.items():
        module = ModuleType(name)
        vars(module).update({each: type(each, (Recorded,), {}) for each in classes})
        monkeypatch.setitem(sys.modules, name, module)
    return runpy.run_path(str(LAUNCH_FILE))


def test_the_launch_file_declares_the_arguments_of_a_deployment(launch_file):
    (entities,) = launch_file["generate_launch_description"]().arguments
    declared_arguments = [e for e in entities if type(e).__name__ == "DeclareLaunchArgument"]
    assert [
        (e.arguments[0], e.options["default_value"], e.options["description"])
        for e in declared_arguments
    ] == [(a.name, a.default, a.description) for a in ARGUMENTS]
    choices = {e.arguments[0]: e.options["choices"] for e in declared_arguments}
    assert choices["operator"] == OPERATORS and choices["task"] is None


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_launch_file_starts_the_nodes_of_the_deployment(
    launch_file, policy, operator, monkeypatch
):
    monkeypatch.setattr(spacemouse, "list_devices", lambda: ["a device"])
    arguments = {a.name: a.default for a in ARGUMENTS}
    arguments |= {"policy": str(policy), "operator": operator}
    actions = launch_file["start_nodes"](arguments)
    launched = {a.options["name"]: a for a in actions if type(a).__name__ == "Node"}
    deployment = describe(arguments)
    assert list(launched) == [spec.name for spec in deployment.nodes]
    for spec in deployment.nodes:
        options = launched[spec.name].options
        assert (options["package"], options["executable"]) == ("hapo_ros", spec.executable)
        file, parameters = options["parameters"]
        assert file == str(deployment.parameter_file) and parameters == spec.parameters
        assert options["respawn"] is (spec.restart is not None)
        if options["respawn"]:
            # How often is for the rules of the deployment to say.
            assert "respawn_max_retries" not in options and options["respawn_delay"] > 0
        assert float(options["sigterm_timeout"]) == spec.stop_timeout_s
        assert float(options["sigkill_timeout"]) == spec.stop_timeout_s


@pytest.fixture
def launched(launch_file, policy, monkeypatch):
    """The nodes that the launch file starts, by name, and its handler of their ends."""
    arguments = {a.name: a.default for a in ARGUMENTS} | {"policy": str(policy)}
    watch, *nodes = launch_file["start_nodes"](arguments | {"operator": "simulated"})
    assert type(watch).__name__ == "RegisterEventHandler"  # first, see there
    (handler,) = watch.arguments
    assert all(map(handler.options["target_action"], nodes))
    assert not handler.options["target_action"](Recorded())  # what else is launched is not ours

    def end(name, returncode, is_shutdown=False):
        (node,) = [node for node in nodes if node.options["name"] == name]
        event = SimpleNamespace(action=node, returncode=returncode)
        return handler.options["on_exit"](event, SimpleNamespace(is_shutdown=is_shutdown))

    return end


def test_under_launch_a_fourth_death_within_a_minute_ends_the_run_with_an_error(launched):
    for _ in range(3):
        told = launched("arbiter", -9)
        assert type(told).__name__ == "LogInfo"
        assert told.options["msg"] == "arbiter ended with signal 9. It is started again."
        launched("policy", 1)  # each has its own three
    with pytest.raises(DeploymentError, match=r"signal 9, for the 4th time within 60 s\."):
        launched("arbiter", -9)


def test_under_launch_the_end_of_an_essential_node_ends_the_run_with_an_error(launched):
    with pytest.raises(DeploymentError, match=r"robosuite_bridge ended with exit code 1\."):
        launched("robosuite_bridge", 1)


def test_under_launch_work_that_is_done_ends_the_run_well(launched):
    ending = launched("simulated_operator", 0)
    assert type(ending).__name__ == "EmitEvent"
    assert type(ending.options["event"]).__name__ == "Shutdown"


def test_under_launch_an_end_that_was_asked_for_is_no_death(launched):
    assert launched("robosuite_bridge", 0, is_shutdown=True) is None


def no_hidapi():
    raise DeviceLost("libhidapi is missing.")


@pytest.mark.parametrize(
    ("found", "said"),
    [(lambda: [], "No SpaceMouse is plugged in"), (no_hidapi, "libhidapi is missing")],
)
def test_without_a_spacemouse_nothing_is_started_and_the_alternatives_are_named(
    launch_file, policy, monkeypatch, found, said
):
    monkeypatch.setattr(spacemouse, "list_devices", found)
    arguments = {a.name: a.default for a in ARGUMENTS} | {"policy": str(policy)}
    with pytest.raises(DeviceLost, match=f"{said}.* Nothing is started.*operator:=keyboard"):
        launch_file["start_nodes"](arguments | {"operator": "spacemouse"})
    assert launch_file["start_nodes"](arguments | {"operator": "keyboard"})


def test_a_promoted_checkpoint_is_served_unless_another_is_asked_for(
    tmp_path, policy, state_policy
):
    """What current.json names is served, and decides what the cameras are."""
    served = tmp_path / "checkpoints"
    with becoming_current(served, state_policy, "a version"):
        assert not (served / "current.json").exists()
    assert [path.name for path in served.iterdir()] == ["current.json"]
    arguments = {"checkpoints": str(served), "operator": "simulated"}
    promoted = nodes_of(describe(arguments))
    assert promoted["policy"].parameters["checkpoint"] == str(state_policy)
    assert promoted["robosuite_bridge"].parameters["cameras"] == [""]
    asked_for = nodes_of(describe(arguments | {"policy": str(policy)}))["policy"].parameters
    assert asked_for["checkpoint"] == str(policy)
    assert asked_for["promoted_ignored_ns"] == written_ns(served)
    with pytest.raises(KeyError), becoming_current(served, policy, "another version"):
        raise KeyError  # such as a policy node that refuses it
    assert [path.name for path in served.iterdir()] == ["current.json"]
    assert nodes_of(describe(arguments))["policy"].parameters["checkpoint"] == str(state_policy)


def test_a_clock_that_was_set_back_keeps_no_promotion_from_counting(tmp_path, policy, state_policy):
    with becoming_current(tmp_path, policy, "a version"):
        pass
    ahead_s = time.time() + 3600.0
    os.utime(tmp_path / "current.json", (ahead_s, ahead_s))
    known_ns = written_ns(tmp_path)
    assert current(tmp_path, known_ns) == "" and current(tmp_path) == str(policy)
    with becoming_current(tmp_path, state_policy, "another version"):
        pass
    assert current(tmp_path, known_ns) == str(state_policy)


def test_a_home_folder_may_be_meant_by_its_sign(tmp_path, monkeypatch, state_policy):
    """A shell leaves the ~ of name:=~/folder as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with becoming_current(tmp_path / "mine", state_policy, "a version"):
        pass
    nodes = nodes_of(describe({"checkpoints": "~/mine", "bags": "~/bags"}))
    assert nodes["policy"].parameters["checkpoint"] == str(state_policy)
    assert nodes["recorder"].parameters["root"] == str(tmp_path / "bags")
