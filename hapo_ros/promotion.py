"""Which checkpoint is served: ``current.json``, changed atomically, then told to the graph."""

from contextlib import nullcontext
from pathlib import Path

from hapo_ros.gateway_client import GatewayClient, GatewayError, NoServer
from hapo_ros.policies.checkpoint import check, load
from hapo_ros.policies.promoted import CURRENT, becoming_current
from hapo_ros.supervisor import DeploymentError

ANSWER_S = 60.0
SERVER_S = 6.0  # a node that has just started may be found as late as this


def promote(checkpoint: Path, checkpoints: Path, graph: GatewayClient | None = None) -> dict:
    """Make ``checkpoint`` the one that is served.

    ``checkpoints/current.json`` names it from then on, also to a policy node that is restarted.
    It is loaded and checked here first. Where nodes are installed, a running policy node is asked
    to load it; it loads, checks, warms up and swaps without restarting. During an episode that is
    refused, also where the policy node is just not there, and current.json is left as it was: it
    would change the policy in the middle of the episode when the node is started again. graph: a
    gateway that is there already. Returns what happened. Raises ValueError for what cannot be
    served.
    """
    checkpoint = checkpoint.resolve()
    try:
        policy = load(checkpoint)
        check(policy)
    except (ValueError, OSError) as error:
        raise ValueError(f"{checkpoint} was not promoted. {error}") from error
    file = checkpoints.resolve() / CURRENT
    try:
        with becoming_current(file.parent, checkpoint, policy.version):
            served = load_into_graph(checkpoint, graph)
            if served.startswith("refused"):
                raise ValueError(f"{checkpoint} was not promoted: {served}")
    except OSError as error:
        raise ValueError(
            f"{checkpoint} was not promoted: {file} cannot be written ({error}). What was served "
            "goes on. Mend that, or give another folder with --checkpoints, and the same with "
            "checkpoints:= to the deployment."
        ) from error
    return {
        "checkpoint": str(checkpoint),
        "version": policy.version,
        "current": str(file),
        "running_policy": served,
    }


def load_into_graph(checkpoint: Path, graph: GatewayClient | None = None) -> str:
    """Ask a running policy node to load a checkpoint; a sentence that starts with loaded, refused
    or "no policy node"."""
    try:
        with nullcontext(graph) if graph else GatewayClient(server_timeout_s=SERVER_S) as gateway:
            try:
                result = gateway.call("load_policy", ANSWER_S, checkpoint=str(checkpoint))
            except NoServer as error:
                if not gateway.running_episode:
                    return f"no policy node: {error}"
                return (
                    f"refused: Episode {gateway.running_episode} is running, and the policy node "
                    "is not there. End the episode, then promote."
                )
    except DeploymentError:
        return "no policy node: the nodes are not installed here"
    except GatewayError as error:
        return f"refused: {error}"
    return f"loaded: {result['text']}" if result["ok"] else f"refused: {result['text']}"
