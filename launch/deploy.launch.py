"""Deploy a policy with an operator who can take over: ``ros2 launch hapo_ros deploy.launch.py``.

Translates ``hapo_ros.deployment`` for ROS 2's launch; ``ros2 launch hapo_ros deploy.launch.py
--show-args`` lists the arguments. Ctrl-C ends the nodes in order: what flushes has time to.
"""

from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from hapo_ros.deployment import ARGUMENTS, PACKAGE, check_devices, describe
from launch import LaunchDescription


def start_nodes(context):
    """The nodes of the deployment that the arguments describe."""
    values = {
        argument.name: LaunchConfiguration(argument.name).perform(context) for argument in ARGUMENTS
    }
    deployment = describe(values)
    check_devices(deployment)
    actions = []
    for spec in deployment.nodes:
        node = Node(
            package=PACKAGE,
            executable=spec.executable,
            name=spec.name,
            parameters=[str(deployment.parameter_file), dict(spec.parameters)],
            output="screen",
            emulate_tty=spec.terminal,
            respawn=spec.restart is not None and not spec.done,
            respawn_delay=spec.restart.delay_s if spec.restart else 0.0,
            respawn_max_retries=spec.restart.times if spec.restart else -1,
            sigterm_timeout=str(spec.stop_timeout_s),
            sigkill_timeout=str(spec.stop_timeout_s),
        )
        actions.append(node)
        if spec.essential or spec.done:
            shutdown = EmitEvent(event=Shutdown(reason=f"{spec.name} ended"))
            actions.append(
                RegisterEventHandler(OnProcessExit(target_action=node, on_exit=[shutdown]))
            )
    return actions


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
