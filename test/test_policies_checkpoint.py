"""Checkpoints: round trips, LoRA, and everything that may be wrong with a folder."""

import json
import os

import numpy as np
import pytest
import torch

from hapo_ros.policies import checkpoint, lora
from hapo_ros.policies.base import Batch
from hapo_ros.policies.small import Normalisation
from hapo_ros.policies.tiny_vla import TinyVla, TinyVlaConfig
from hapo_ros.policies.tokenizers import Words

NAMES = ("x", "y", "z", "gripper")


def make(seed=0, cameras=1) -> TinyVla:
    torch.manual_seed(seed)
    config = TinyVlaConfig(
        {f"cam{i}": (84, 84) for i in range(cameras)}, 3, NAMES, width=32, blocks=2
    )
    normal = np.random.default_rng(seed).normal(size=(40, 11))
    return TinyVla(config, Normalisation.fit(4, normal, normal[:, :3]), Words.fit(["lift it"]))


def batch(count=3) -> Batch:
    g = torch.Generator().manual_seed(5)
    images = {"cam0": torch.randint(0, 256, (count, 84, 84, 3), generator=g, dtype=torch.uint8)}
    return Batch(
        images,
        torch.randn(count, 11, generator=g),
        torch.randn(count, 3, generator=g),
        ["lift it"] * count,
        2 * torch.rand(count, 1, 4, generator=g) - 1,
        torch.ones(count, 1, dtype=torch.bool),
    )


def stir_adapter(policy) -> None:
    generator = torch.Generator().manual_seed(9)
    for name, parameter in policy.network.named_parameters():
        if ".lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


def test_a_loaded_policy_is_the_saved_one_bit_for_bit(tmp_path):
    policy = make()
    version = checkpoint.save(policy, tmp_path / "a", {"method": "bc"})
    loaded = checkpoint.load(tmp_path / "a")
    assert loaded.version == policy.version == version and len(version) == 16
    assert torch.equal(loaded.logits(batch()), policy.logits(batch()))
    observation = policy.example()
    np.testing.assert_array_equal(
        loaded.act(observation, "lift it"), policy.act(observation, "lift it")
    )
    assert checkpoint.read_provenance(tmp_path / "a") == {"method": "bc", "version": version}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_the_version_is_of_the_content_and_not_of_the_provenance(tmp_path):
    first = checkpoint.save(make(), tmp_path / "a", {"method": "bc"})
    assert checkpoint.save(make(), tmp_path / "b", {"method": "hapo", "created": "x"}) == first
    assert checkpoint.save(make(1), tmp_path / "c", {}) != first
    policy = make()
    policy.normalisation.proprio_mean[0] += 1
    assert checkpoint.save(policy, tmp_path / "d", {}) != first


def test_a_checkpoint_has_a_card_that_says_what_it_is_and_how_it_was_made(tmp_path):
    provenance = {
        "method": "hapo",
        "command": "hapo optimize bags --base lift --method hapo --output 'my policy'",
        "parent": "0123456789abcdef",
        "parent_checkpoint": "lift",
        "settings": {"steps": 7, "undesirable_floor": None},
        "batch_composition": {"expert": 4, "human": 2},
        "ranks": 2,
        "k": 10,
        "bags": [
            {"episode_id": "e1", "source": "deployment", "outcome": "failure", "steps": 40,
             "bag_hash": "abc123", "instruction": "lift the cube"},
        ],
        "counts": {"human": 30, "undesirable": 10, "unresolved": 0},
        "metrics": {"loss": 0.123456, "bc_loss": None},
        "notes": ["Something ran away."],
    }  # fmt: skip
    version = checkpoint.save(make(), tmp_path / "my policy", provenance)
    text = (tmp_path / "my policy" / "README.md").read_text()
    for said in (
        f"- tiny_vla\n- hapo\n---\n\n# Policy {version}\n",
        'of family `tiny_vla` for "lift the cube", trained by hapo_ros with method `hapo`.',
        "camera `cam0`: 84 x 84",
        "actions: `x`, `y`, `z`, `gripper`, each in [-1, 1], in chunks of 1",
        "from version `0123456789abcdef` (`lift`)",
        f"by `{provenance['command']}`",
        "4 expert, 2 human, divided among 2 processes",
        '"undesirable_floor": null',
        "1 episodes; steps: 30 human, 10 undesirable.",
        "| e1 | deployment | failure | 40 | `abc123` |",
        "- loss: 0.1235\n\n",
        "no safety function",
        "no licence of its own",
        "- Something ran away.",
        "hapo deploy policy:=FOLDER",
        'checkpoint.load("FOLDER")',
    ):
        assert said in text, said


def test_a_card_that_is_missing_or_was_edited_changes_nothing(tmp_path):
    """Folders that were made before there were cards are as good as ever."""
    version = checkpoint.save(make(), tmp_path / "a", {})
    card = tmp_path / "a" / "README.md"
    card.write_text(card.read_text() + "\nGood on Mondays.\n")
    assert checkpoint.load(tmp_path / "a").version == version
    card.unlink()
    assert checkpoint.load(tmp_path / "a").version == version


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    checkpoint.save(make(), tmp_path / "a", {})
    before = (tmp_path / "a" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="never overwritten"):
        checkpoint.save(make(1), tmp_path / "a", {})
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.save(make(), tmp_path / "a", {"method": object()})
    policy = make()
    policy.network.start.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"not finite \(start\)"):
        checkpoint.save(policy, tmp_path / "a", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["config.json", "normalisation.json", "tokenizer.json", "model.safetensors", "provenance.json"],
)
def test_a_missing_file_is_named(tmp_path, name):
    checkpoint.save(make(), tmp_path / "a", {})
    os.remove(tmp_path / "a" / name)
    with pytest.raises(FileNotFoundError, match=f"has no {name}.*complete checkpoint"):
        checkpoint.load(tmp_path / "a")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["config.json", "normalisation.json", "tokenizer.json", "model.safetensors"]
)
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_file_is_refused(tmp_path, name, damage):
    checkpoint.save(make(), tmp_path / "a", {})
    path = tmp_path / "a" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-8] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    with pytest.raises(ValueError, match=r"damaged|not the checkpoint that was saved"):
        checkpoint.load(tmp_path / "a")


def test_damaged_weights_and_mixed_files_are_refused_even_with_a_fitting_hash(tmp_path):
    checkpoint.save(make(), tmp_path / "a", {})
    checkpoint.save(make(cameras=2), tmp_path / "b", {})

    def rewrite_provenance():
        version = checkpoint.version_of(tmp_path / "a")
        (tmp_path / "a" / "provenance.json").write_text(json.dumps({"version": version}))

    good = (tmp_path / "b" / "model.safetensors").read_bytes()
    for content, message in ((good, "do not belong together"), (good[:99], "is damaged")):
        (tmp_path / "a" / "model.safetensors").write_bytes(content)
        rewrite_provenance()
        with pytest.raises(ValueError, match=message):
            checkpoint.load(tmp_path / "a")


def test_another_format_or_family_is_refused(tmp_path):
    checkpoint.save(make(), tmp_path / "a", {})
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    for change, message in (({"format": 99}, "checkpoint format"), ({"family": "x"}, "no policy")):
        path.write_text(json.dumps({**config, **change}))
        version = checkpoint.version_of(tmp_path / "a")
        (tmp_path / "a" / "provenance.json").write_text(json.dumps({"version": version}))
        with pytest.raises(ValueError, match=message):
            checkpoint.load(tmp_path / "a")


def test_lora_trains_the_adapter_alone_and_starts_as_no_change():
    policy = make()
    before = policy.logits(batch())
    whole = sum(p.numel() for p in policy.network.parameters())
    lora.add_lora(policy, rank=4, alpha=2)
    torch.testing.assert_close(policy.logits(batch()), before)
    trainable = {n for n, p in policy.network.named_parameters() if p.requires_grad}
    assert trainable and all(".lora_" in name for name in trainable)
    linear = [m for m in policy.network.modules() if isinstance(m, torch.nn.Linear)]
    assert len(lora.layers(policy)) * 3 == len(linear)  # base layer, A and B of each
    after = sum(p.numel() for n, p in policy.network.named_parameters() if ".lora_" not in n)
    assert after == whole
    with pytest.raises(ValueError, match="already has a LoRA adapter"):
        lora.add_lora(policy)


def test_the_adapter_of_a_bfloat16_network_is_float32_and_merges_into_bfloat16():
    policy = make()
    policy.network.to(torch.bfloat16)
    lora.add_lora(policy, rank=4, alpha=2)
    assert {tensor.dtype for tensor in lora.adapter_state(policy).values()} == {torch.float32}
    assert {tensor.dtype for tensor in lora.merged_state(policy).values()} == {torch.bfloat16}


def test_with_its_adapter_off_the_policy_is_its_base():
    policy, base = make(), make()
    lora.add_lora(policy, rank=4, alpha=2)
    stir_adapter(policy)
    changed = policy.logits(batch())
    assert (changed - base.logits(batch())).abs().max() > 0.01
    with lora.adapter_off(policy):
        torch.testing.assert_close(policy.logits(batch()), base.logits(batch()))
    torch.testing.assert_close(policy.logits(batch()), changed)


def test_a_lora_policy_is_saved_merged_needs_no_base_and_stays_as_it_is(tmp_path):
    policy = make()
    lora.add_lora(policy, rank=4, alpha=2)
    stir_adapter(policy)
    checkpoint.save(policy, tmp_path / "merged", {})
    loaded = checkpoint.load(tmp_path / "merged")
    assert lora.has_lora(policy) and not lora.has_lora(loaded)
    torch.testing.assert_close(loaded.logits(batch()), policy.logits(batch()), rtol=1e-4, atol=1e-5)


def test_an_adapter_alone_finds_its_base_and_refuses_another(tmp_path):
    checkpoint.save(make(), tmp_path / "base", {})
    checkpoint.save(make(1), tmp_path / "other", {})
    policy = checkpoint.load(tmp_path / "base")
    lora.add_lora(policy, rank=4, alpha=2)
    stir_adapter(policy)
    folder = tmp_path / "adapter"
    version = checkpoint.save(policy, folder, {}, merge=False, base=tmp_path / "base")
    loaded = checkpoint.load(folder)
    assert loaded.version == version and lora.has_lora(loaded)
    torch.testing.assert_close(loaded.logits(batch()), policy.logits(batch()))
    assert not (folder / "model.safetensors").exists()
    with pytest.raises(ValueError, match="Give the right base"):
        checkpoint.load(folder, base=tmp_path / "other")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="which is not there"):
        checkpoint.load(folder)
    assert checkpoint.load(folder, base=tmp_path / "moved").version == version
    with pytest.raises(ValueError, match="only for a policy with LoRA"):
        checkpoint.save(make(), tmp_path / "x", {}, merge=False, base=tmp_path / "moved")


def test_check_passes_a_good_policy_and_refuses_what_must_not_be_served():
    checkpoint.check(make())
    blind = make()
    for parameter in blind.network.cameras.parameters():
        parameter.data.zero_()
    with pytest.raises(ValueError, match="does not see"):
        checkpoint.check(blind)
    broken = make()
    broken.network.head.bias.data[:] = float("nan")
    with pytest.raises(ValueError, match="It is not served"):
        checkpoint.check(broken)
