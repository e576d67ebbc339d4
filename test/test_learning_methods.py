"""The methods' settings, as data."""

import re
from pathlib import Path

import pytest

from hapo_ros.learning.methods import METHODS, method, resolve
from hapo_ros.learning.updates import OBJECTIVES


def test_hapo_is_the_papers():
    settings = resolve("hapo")
    assert settings["fractions"] == {"expert": 0.5, "human": 0.25, "undesirable": 0.25}
    paper = {
        "lr": 5e-5,
        "parameters": "lora",
        "lora_rank": 32,
        "lora_alpha": 16,
        "k": 10,
        "warmup": 10,
        "beta": 0.1,
        "beta_d": 1.0,
        "beta_u": 1.0,
        "scope": "batch",
        "scale": "none",
        "bc_weight": 0.0,
        "undesirable_floor": None,
        "z0_max": None,
        "batch_size": 32,
        "max_grad_norm": 1.0,
        "drop_unresolved": True,
    }
    assert {key: settings[key] for key in paper} == paper
    assert not any(settings[f"no_{x}"] for x in ("z0", "reweighting", "gripper_rule"))


def test_hapo_anchored_is_hapo_with_a_cloning_term_and_a_floor():
    anchored = {"bc_weight": 1.0, "undesirable_floor": -5.0}
    assert resolve("hapo_anchored") == resolve("hapo") | anchored


def test_dagger_is_half_demonstrations_and_half_of_all_that_was_done_in_deployments():
    settings = resolve("dagger")
    assert settings["fractions"] == {"expert": 0.5, "interaction": 0.5}
    assert settings["no_undesirable"] is False


def test_sirius_draws_from_all_steps_alike_and_leaves_no_choice_in_it():
    assert resolve("sirius")["fractions"] == {"all": 1.0}
    for setting in ("fractions", "no_balanced_sampling", "allow_missing_group"):
        with pytest.raises(ValueError, match=f"sirius has no setting '{setting}'"):
            resolve("sirius", {setting: None})


def test_dpo_is_of_demonstrations_and_corrections_alone():
    settings = resolve("dpo")
    assert settings["fractions"] == {"expert": 0.5, "human": 0.5}
    assert settings["beta"] == 0.1 and settings["sigma"] == 0.1
    for setting in ("no_z0", "no_gripper_rule", "no_reweighting"):
        with pytest.raises(ValueError, match=f"dpo has no setting '{setting}'"):
            resolve("dpo", {setting: True})


def test_tpo_is_of_takeovers_and_leaves_no_choice_in_it():
    settings = resolve("tpo")
    assert settings["fractions"] == {"takeover": 1.0} and settings["beta"] == 0.1
    for setting in ("fractions", "no_balanced_sampling", "no_z0", "no_gripper_rule", "sigma"):
        with pytest.raises(ValueError, match=f"tpo has no setting '{setting}'"):
            resolve("tpo", {setting: True})


def test_every_preference_method_can_have_an_anchor():
    for name in ("dpo", "tpo", "kto", "hapo"):
        settings = resolve(name)
        assert settings["bc_weight"] == 0.0 and settings["undesirable_floor"] is None


def test_kto_is_hapo_without_the_settings_of_its_weights():
    weights = {"beta_d", "beta_u", "scope", "scale", "l1_prediction", "no_reweighting"}
    kto, hapo = resolve("kto"), resolve("hapo")
    assert hapo.keys() - kto.keys() == weights
    assert kto == {key: value for key, value in hapo.items() if key not in weights}
    with pytest.raises(ValueError, match="kto has no setting 'beta_d'"):
        resolve("kto", {"beta_d": 2.0})


def test_habc_has_the_constants_of_its_paper():
    settings = resolve("habc")
    paper = {
        "window": 50,
        "min_human": 10,
        "critic_warmup": 500,
        "batch_size": 256,
        "huber_delta": 1.0,
        "stale_after": 10000,
        "eps": 1e-6,
        "lr": 5e-5,
        "demonstrations_in_mean": True,
        "reweight_interventions": False,
        "no_efficiency": False,
        "critic_backbone": False,
    }
    assert {key: settings[key] for key in paper} == paper
    assert resolve("habc_v") == settings | {"no_efficiency": True}
    assert resolve("habc_ir") == settings | {"reweight_interventions": True}
    dagger = resolve("imit_dagger")
    assert dagger["fractions"] == {"expert": 0.5, "human": 0.5} and "critic_warmup" not in dagger
    recap = resolve("imit_recap")
    assert (recap["gamma"], recap["failure_penalty"]) == (0.99, 100.0)
    assert recap["fractions"] == {"expert": 0.5, "interaction": 0.5}


def test_bc_continue_sees_demonstrations_alone_and_has_no_preference_setting():
    assert resolve("bc_continue")["fractions"] == {"expert": 1.0}
    with pytest.raises(ValueError, match="has no setting 'beta'"):
        resolve("bc_continue", {"beta": 1.0})
    with pytest.raises(ValueError, match="has no setting 'image_shift'"):
        resolve("hapo", {"image_shift": 4})


def test_every_methods_defaults_are_valid_and_its_objective_exists():
    for name, entry in METHODS.items():
        assert name == entry.name and set(entry.defaults) <= set(entry.settings)
        assert entry.objective in OBJECTIVES
        assert resolve(name)["micro_batch"] == resolve(name)["batch_size"]


def test_the_optimize_action_names_the_methods():
    action = Path(__file__).resolve().parent.parent / "action" / "Optimize.action"
    named = re.search(r"^string method +# (.+)$", action.read_text(), re.M)[1]
    assert named.split(" | ") == [name for name in METHODS if name != "bc"]


def test_unknown_names_are_answered_with_the_valid_ones():
    with pytest.raises(
        ValueError,
        match=r"no method 'ppo'.*bc_continue, dagger, sirius, dpo, tpo, kto, hapo, hapo_anchored",
    ):
        method("ppo")
    with pytest.raises(ValueError, match=r"no setting 'learning_rate'.*lr, max_grad_norm"):
        resolve("hapo", {"learning_rate": 1e-3})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lr", 0, "a number > 0"),
        ("lr", "5e-5", "a number > 0"),
        ("lr", float("nan"), "a number > 0"),
        ("steps", 2.5, "a whole number >= 1"),
        ("steps", True, "a whole number >= 1"),
        ("no_z0", 1, "true or false"),
        ("scope", "rank", "one of batch, group"),
        ("micro_batch", 0, "a whole number >= 1 or none"),
        ("seed", None, "a whole number >= 0"),
        (
            "fractions",
            {"experts": 1.0},
            "there are the groups expert, human, undesirable, policy, inter",
        ),
        ("fractions", {"expert": 0.5}, "must sum to 1, not 0.5"),
        ("fractions", {"expert": 1.5, "human": -0.5}, "a number >= 0 and <= 1"),
    ],
)
def test_a_bad_value_is_answered_with_what_is_wanted(name, value, message):
    with pytest.raises(ValueError, match=message):
        resolve("hapo", {name: value})


def test_whole_numbers_are_numbers_and_a_share_of_0_is_no_group():
    settings = resolve("hapo", {"lr": 1, "fractions": {"expert": 1, "human": 0}})
    assert settings["lr"] == 1.0 and settings["fractions"] == {"expert": 1.0}
