"""What follows from the end of a node, by the rules of its deployment."""

import pytest

from hapo_ros.deployment import NodeSpec, Restart
from hapo_ros.restarts import RUN_ENDS, Reaction, Restarts, Verdict

SIGKILL = -9
ARBITER = NodeSpec("arbiter", "arbiter", restart=Restart())
SPACEMOUSE = NodeSpec("spacemouse", "spacemouse", restart=Restart(refusal_s=10.0))
OPERATOR = NodeSpec("simulated_operator", "simulated_operator", restart=Restart(), done=True)
KEYBOARD = NodeSpec("keyboard", "keyboard", essential=True)
OPTIMIZER = NodeSpec("optimizer", "optimizer")


def reactions(spec, ends, began_s=0.0) -> list[Reaction]:
    """To ends at (seconds, exit code)."""
    restarts = Restarts(began_s)
    return [restarts.ended(spec, code, now_s).reaction for now_s, code in ends]


def test_a_node_is_restarted_three_times_within_its_minute_and_then_the_run_ends():
    restarts = Restarts(0.0)
    for now_s in (100.0, 110.0, 120.0):
        assert restarts.ended(ARBITER, 1, now_s) == Verdict(
            Reaction.RESTART, "arbiter ended with exit code 1. It is started again."
        )
    assert restarts.ended(ARBITER, SIGKILL, 159.9) == Verdict(
        Reaction.END, "arbiter ended with signal 9, for the 4th time within 60 s. The run ends."
    )


def test_restarts_of_more_than_a_minute_ago_do_not_count():
    """Nor does the first start, whenever it was: what is counted is restarts."""
    ends = [(now_s, SIGKILL) for now_s in (1.0, 30.0, 59.0, 61.1, 90.1, 119.1, 120.0)]
    assert reactions(ARBITER, ends) == [Reaction.RESTART] * 6 + [Reaction.END]


def test_each_node_has_its_own_count():
    restarts = Restarts(0.0)
    other = NodeSpec("policy", "policy", restart=Restart())
    for _ in range(3):
        for spec in (ARBITER, other):
            assert restarts.ended(spec, SIGKILL, 1.0).reaction is Reaction.RESTART


@pytest.mark.parametrize("code", [0, 1, SIGKILL])
def test_a_node_that_is_neither_done_nor_essential_is_restarted_however_it_ended(code):
    assert reactions(ARBITER, [(1.0, code)]) == [Reaction.RESTART]


@pytest.mark.parametrize("spec", [ARBITER, OPERATOR, KEYBOARD, OPTIMIZER], ids=lambda s: s.name)
def test_a_node_that_has_given_up_ends_the_run_whatever_its_rule(spec):
    assert Restarts(0.0).ended(spec, RUN_ENDS, 100.0) == Verdict(
        Reaction.END, f"{spec.name} has given up. The run ends."
    )


def test_a_spacemouse_that_is_not_there_at_the_start_ends_the_run():
    restarts = Restarts(100.0)
    assert restarts.ended(SPACEMOUSE, 1, 102.0) == Verdict(
        Reaction.END, "spacemouse ended with exit code 1 at its start. The run ends."
    )


def test_a_spacemouse_node_that_crashes_later_or_is_killed_is_restarted():
    assert reactions(SPACEMOUSE, [(2.0, SIGKILL)]) == [Reaction.RESTART]
    later = [(100.0, 1), (102.0, 1), (104.0, 1), (106.0, 1)]
    assert reactions(SPACEMOUSE, later) == [Reaction.RESTART] * 3 + [Reaction.END]


def test_work_that_is_done_ends_the_run_well_and_a_crash_before_it_is_a_restart():
    assert reactions(OPERATOR, [(1.0, 1), (2.0, 0)]) == [Reaction.RESTART, Reaction.DONE]


def test_an_essential_node_that_ends_well_ends_the_run_well_and_one_that_crashes_does_not():
    assert reactions(KEYBOARD, [(1.0, 0)]) == [Reaction.DONE]
    restarts = Restarts(0.0)
    assert restarts.ended(KEYBOARD, SIGKILL, 1.0) == Verdict(
        Reaction.END, "keyboard ended with signal 9. The run ends."
    )


def test_without_a_rule_the_run_goes_on_without_the_node():
    restarts = Restarts(0.0)
    assert restarts.ended(OPTIMIZER, 5, 1.0) == Verdict(
        Reaction.GO_ON, "optimizer ended with exit code 5. The run goes on without it."
    )
