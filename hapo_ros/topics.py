"""Names and types of the graph's topics, in one place. Relative: a namespace or remap moves them.

The same names are used by the nodes, by the synchronous core and in the bags.
"""

OBSERVATION_TICK = "observation/tick"
OBSERVATION_INFO = "observation/info"  # JSON, latched: cameras, action space, object state
POLICY_INFO = "policy/info"  # JSON, latched: version, checkpoint
JOINT_STATE = "observation/joint_state"
EEF_POSE = "observation/eef_pose"
OBJECT_STATE = "observation/object_state"
PRIVILEGED_STATE = "simulation/privileged_state"
POLICY_ACTION = "policy/action"
EXECUTED_ACTION = "arbiter/executed_action"
AUTHORITY_STATUS = "arbiter/status"
JOY = "operator/joy"
TWIST = "operator/twist"
ESTOP = "estop"  # Bool: an e-stop, or a robot's fault; latched by the arbiter
APPLIED_ACTION = "robot/applied_action"  # a real robot's; the simulation says it in its ticks
DRY_RUN_TWIST = "robot/dry_run/twist"  # what a robot would be sent
DRY_RUN_GRIPPER = "robot/dry_run/gripper"
EPISODE_INFO = "episode/info"
EPISODE_STATE = "episode/state"

START_EPISODE = "episode/start"
END_EPISODE = "episode/end"
DISCARD_EPISODE = "episode/discard"
REQUEST_AUTHORITY = "arbiter/request"
LOAD_POLICY = "policy/load"
OPTIMIZE = "optimizer/optimize"

TYPES = {
    OBSERVATION_TICK: "hapo_ros/msg/ObservationTick",
    JOINT_STATE: "sensor_msgs/msg/JointState",
    EEF_POSE: "geometry_msgs/msg/PoseStamped",
    OBJECT_STATE: "hapo_ros/msg/StateVector",
    PRIVILEGED_STATE: "hapo_ros/msg/StateVector",
    POLICY_ACTION: "hapo_ros/msg/PolicyAction",
    EXECUTED_ACTION: "hapo_ros/msg/ExecutedAction",
    AUTHORITY_STATUS: "hapo_ros/msg/AuthorityStatus",
    APPLIED_ACTION: "hapo_ros/msg/AppliedAction",
    JOY: "sensor_msgs/msg/Joy",
    TWIST: "geometry_msgs/msg/TwistStamped",
    EPISODE_INFO: "std_msgs/msg/String",
    EPISODE_STATE: "hapo_ros/msg/EpisodeState",
    OBSERVATION_INFO: "std_msgs/msg/String",
    POLICY_INFO: "std_msgs/msg/String",
}


def image(camera: str) -> str:
    """Topic of a camera's images (sensor_msgs/Image)."""
    return f"observation/{camera}/image"


def observed(cameras, object_state: bool) -> list[str]:
    """Topics of what an observation is made of."""
    state = [OBJECT_STATE] if object_state else []
    return [JOINT_STATE, EEF_POSE, *state, *map(image, cameras)]


def recorded(cameras, object_state: bool, operator: bool = True) -> dict[str, str]:
    """Topics that an episode's bag holds, with their types. operator: whether there is one."""
    names = [OBSERVATION_TICK, *observed(cameras, object_state), POLICY_ACTION, EXECUTED_ACTION]
    names += [AUTHORITY_STATUS] + ([JOY, TWIST] if operator else [])
    return {name: TYPES.get(name, "sensor_msgs/msg/Image") for name in names}
