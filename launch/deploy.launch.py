"""Deploy a policy with an operator who can take over: ``ros2 launch hapo_ros deploy.launch.py``.

Translates ``hapo_ros.deployment`` for ROS 2's launch; ``ros2 launch hapo_ros deploy.launch.py
--show-args`` lists the arguments. Ctrl-C signals all nodes at once: in whatever order they end, the
arm holds, and what flushes has time to.
"""

import sys
import time
from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from hapo_ros.deployment import ARGUMENTS, PACKAGE, check_devices, describe, parse
from hapo_ros.restarts import Reaction, Restarts
from hapo_ros.supervisor import DeploymentError
from launch import LaunchDescription

THIS_FILE = Path(__file__).name


def start_nodes(context):
    """The nodes of the deployment that the arguments describe, and what follows when one ends."""
    values = {
        argument.name: LaunchConfiguration(argument.name).perform(context) for argument in ARGUMENTS
    }
    if any(Path(word).name == THIS_FILE for word in sys.argv):
        # Named by hand, and not included by another file, which may have arguments of its own: a
        # misspelt one is refused. Launch itself would leave it out without a word.
        values |= parse(word for word in context.argv if ":=" in word)
    deployment = describe(values)
    check_devices(deployment)
    restarts, specs = Restarts(time.monotonic()), {}
    for spec in deployment.nodes:
        node = Node(
            package=PACKAGE,
            executable=spec.executable,
            name=spec.name,
            parameters=[str(deployment.parameter_file), dict(spec.parameters)],
            output="screen",
            emulate_tty=spec.terminal,
            # Launch starts it again, after the delay, unless the run has been ended by then.
            respawn=spec.restart is not None,
            respawn_delay=spec.restart.delay_s if spec.restart else 0.0,
            sigterm_timeout=str(spec.stop_timeout_s),
            sigkill_timeout=str(spec.stop_timeout_s),
        )
        specs[node] = spec

    def on_exit(event, context):
        if context.is_shutdown:
            return None
        verdict = restarts.ended(specs[event.action], event.returncode, time.monotonic())
        if verdict.reaction is Reaction.END:
            raise DeploymentError(verdict.sentence)  # launch says it, ends and exits with 1
        if verdict.reaction is Reaction.DONE:
            return EmitEvent(event=Shutdown(reason=verdict.sentence))
        return LogInfo(msg=verdict.sentence)

    # Before the nodes: their own handlers, which print their last words, come before it then.
    watch = RegisterEventHandler(OnProcessExit(target_action=specs.__contains__, on_exit=on_exit))
    return [watch, *specs]


def generate_launch_description():
    """Arguments, then the nodes."""
    declared = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.description,
            choices=argument.choices or None,
        )
        for argument in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start_nodes)])
