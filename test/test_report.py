"""The demo's report: one file, honest about what it shows, whatever the bags say."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_bags import CORRECTED, HOSTILE, H, N, P, record

from hapo_ros import labels
from hapo_ros.episodes import describe, open_episodes, summary
from hapo_ros.report import charts, filmstrip
from hapo_ros.report.markup import points
from hapo_ros.report.page import write_report
from hapo_ros.report.terminal import print_results


def found(bags):
    """What the demo says of a folder of bags."""
    readers, _ = open_episodes(bags)
    total = summary(readers)
    return {
        "task": "Lift",
        "bags": str(bags),
        "episodes": [describe(reader) for reader in readers],
        "summary": total,
        "labels": total["labels"],
        "intervention_ratio": total["intervention_ratio"],
    }


def an_evaluation(result, control=None, base=None):
    """Three arms on 20 seeds from 9000 on, of which so many succeeded, the first ones."""
    given = {"base": base or 5, "hapo_anchored": result, "bc_continue": control or 5}
    arms = {
        name: {"successes": [i < good for i in range(20)], "steps": [30] * 20}
        for name, good in given.items()
    }
    return {"evaluation": {"seeds": [9000, 9019], "arms": arms}}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results with every part: three episodes, two trainings, three arms."""
    root = tmp_path_factory.mktemp("results")
    record(root / "bags", "ep1", CORRECTED)
    record(root / "bags", "ep2", (P,) * 20, seed=8)
    record(root / "bags", "ep3", (P,) * 12 + (H,) * 2, outcome="failure", seed=9)
    training = {}
    for name in ("hapo_anchored", "bc_continue"):
        training[name] = str(root / f"{name}.jsonl")
        with open(training[name], "w") as lines:
            for step in range(1, 31):
                row = {"step": step, "loss": 2.0 / step}
                if name != "bc_continue":
                    row["reward_desirable"] = None if step % 7 == 0 else step / 10
                    row["reward_undesirable"] = -step / 10
                lines.write(json.dumps(row) + "\n")
    return (
        found(root / "bags")
        | an_evaluation(15)
        | {
            "instruction": HOSTILE,
            "created": "2026-01-02T03:04:05+00:00",
            "machine": "2 cores",
            "versions": {"numpy": "2.0"},
            "took_s": {"Deployment": 3.0, "Optimize": 2.5},
            "checkpoints": {"hapo_anchored": "/runs/hapo_anchored"},
            "training": training,
        }
    )


class Page(HTMLParser):
    """A page's elements, as (name, attributes), and its text; refuses what is not well nested."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.words, self._open = [], [], []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self):
        return "\n".join(self.words)

    def count(self, tag, class_):
        return sum(t == tag and a.get("class") == class_ for t, a in self.elements)


def written(tmp_path, results):
    path = write_report(tmp_path / "report.html", results)
    return Page(path.read_text(encoding="utf-8"))


def test_the_report_is_one_file_without_scripts_that_loads_nothing(tmp_path, results):
    page = written(tmp_path, results)
    assert "script" not in {tag for tag, _ in page.elements}
    sources = [a[key] for _, a in page.elements for key in ("src", "href", "srcset") if key in a]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    policy = [a["content"] for tag, a in page.elements if a.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    css = (tmp_path / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "prefers-color-scheme: dark" in css
    assert "url(" not in css and "@import" not in css
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_what_bags_say_is_text_and_never_markup(tmp_path, results):
    page = written(tmp_path, results | {"task": HOSTILE, "machine": "\ud800<b>"})
    assert f"“{HOSTILE}”" in page.text
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in raw and "?&lt;b&gt;" in raw


def test_every_step_has_a_bar_in_the_colour_of_who_decided(tmp_path, results):
    only = results | {"episodes": results["episodes"][:1], "labels": None, "summary": None}
    page = written(tmp_path, only)
    steps = only["episodes"][0]["labels"]
    assert steps == {"undesirable": 10, "policy": 9, "human": 6, "none": 1}
    for name, count in steps.items():
        in_the_table = 1
        assert page.count("rect", f"label-{name}") == count + in_the_table
    assert page.count("path", "flag-mark") == 1
    assert page.count("path", "track gripper") == page.count("path", "track confidence") == 1


def test_the_film_shows_every_camera_at_the_takeover_and_before_it(tmp_path, results):
    page = written(tmp_path, results | {"episodes": results["episodes"][:1]})
    frames = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(frames) == 2 * filmstrip.FRAMES
    takeover = [frame for frame in frames if "step 15, human" in frame["alt"]]
    assert [frame["alt"].split(",")[0] for frame in takeover] == ["front", "wrist"]
    assert all(frame["class"] == "frame border-human" for frame in takeover)
    assert any(frame["class"] == "frame border-undesirable" for frame in frames)
    assert "▲ takeover" in page.text


def test_an_episode_without_images_or_gripper_has_its_timeline_all_the_same(tmp_path):
    record(tmp_path / "bags", "ep1", (P,), cameras={}, object_state=["z"], names=["x", "y"])
    page = written(tmp_path, found(tmp_path / "bags"))
    assert page.count("path", "track gripper") == 0
    assert page.count("path", "track confidence") == 1
    assert "img" not in {tag for tag, _ in page.elements}


def test_large_images_do_not_make_a_large_report(tmp_path):
    for number in range(3):
        record(tmp_path / "bags", f"ep{number}", CORRECTED[9:18], size=(480, 640))
    path = write_report(tmp_path / "report.html", found(tmp_path / "bags"))
    assert path.stat().st_size < 3_000_000


@given(st.integers(1, 300).flatmap(
    lambda count: st.tuples(st.just(count), st.lists(st.integers(0, count - 1), max_size=5))
))  # fmt: skip
def test_a_film_has_the_first_the_last_and_the_telling_steps_in_order(case):
    count, telling = case
    shown = filmstrip.film_indices(count, telling)
    assert shown == sorted(set(shown)) and len(shown) == min(count, filmstrip.FRAMES)
    assert {0, count - 1, *telling} <= set(shown)


@given(st.lists(st.sampled_from([P, H, N]), min_size=1))
def test_as_many_takeovers_are_marked_as_are_counted(live):
    onsets = filmstrip.takeover_onsets(np.array(live))
    assert len(onsets) == labels.takeovers(live)
    assert all(live[onset] == H for onset in onsets)


def test_the_episodes_shown_are_a_takeover_a_failure_and_the_policy_alone(results):
    chosen = filmstrip.choose(results["episodes"])
    assert [(each["episode_id"], why) for each, why in chosen] == [
        ("ep1", "a typical takeover"),
        ("ep3", "a failure"),
        ("ep2", "the policy alone"),
    ]
    assert [why for _, why in filmstrip.choose(results["episodes"][:2])] == [
        "a typical takeover",
        "the policy alone",
    ]
    assert filmstrip.choose([]) == []


def test_a_difference_is_claimed_only_where_the_interval_leaves_out_zero(tmp_path):
    page = written(tmp_path, an_evaluation(15))
    said = "Against base (5 of 20): +50 points, 95 % interval +22 to +67, exact p 0.002"
    assert f"{said}: hapo_anchored is better." in page.text
    assert "15/20 = 75 % (53 to 89 %), 30 steps" in page.text
    page = written(tmp_path, an_evaluation(7))
    assert "exact p 0.500: no difference shown." in page.text
    assert "is better" not in page.text
    page = written(tmp_path, an_evaluation(1, control=15))
    assert "exact p < 0.001: bc_continue is better." in page.text


def test_an_interval_that_just_leaves_out_zero_does_not_read_as_if_it_held_it():
    assert [points(d) for d in (0.004, -0.004, 0.0, 0.013, -0.5)] == [
        "+0.4",
        "−0.4",
        "0",
        "+1",
        "−50",
    ]


def test_the_evaluation_says_how_many_seeds_and_which(tmp_path, results):
    page = written(tmp_path, results)
    assert "once on each of 20 seeds (seeds 9000 to 9019)." in page.text
    assert "not a clean test" not in page.text
    assert page.count("rect", "success") == 5 + 15 + 5
    episodes = [each | {"seed": 9000 + i} for i, each in enumerate(results["episodes"])]
    page = written(tmp_path, results | {"episodes": episodes})
    assert "3 of these seeds were also deployed on, so this is not a clean test." in page.text


def test_arms_that_are_not_paired_are_refused_and_the_earlier_report_is_kept(tmp_path, results):
    before = write_report(tmp_path / "report.html", results).read_bytes()
    unpaired = an_evaluation(15)
    unpaired["evaluation"]["arms"]["base"]["successes"].pop()
    with pytest.raises(ValueError, match="not paired"):
        write_report(tmp_path / "report.html", unpaired)
    assert (tmp_path / "report.html").read_bytes() == before


def test_a_report_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError):
        write_report(tmp_path / "report.html", {})
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_any_part_may_be_missing(tmp_path, results):
    few = results | {"episodes": results["episodes"][1:2]}
    for name in few:
        written(tmp_path, {key: value for key, value in few.items() if key != name})
        written(tmp_path, {name: few[name]})
    assert "Learning from takeovers" in written(tmp_path, {}).text


def test_what_cannot_be_read_is_named_and_the_rest_is_reported(tmp_path, results):
    (tmp_path / "broken.jsonl").write_text('{"step": 1, "loss"')
    gone = results["episodes"][0] | {"path": str(tmp_path / "gone"), "episode_id": "ep_gone"}
    training = {"hapo": str(tmp_path / "broken.jsonl"), "other": str(tmp_path / "none.jsonl")}
    episodes = [gone, *results["episodes"][1:]]
    page = written(tmp_path, results | {"episodes": episodes, "training": training})
    assert "No pictures of ep_gone: " in page.text
    assert f"No curves: {tmp_path / 'broken.jsonl'}: " in page.text
    assert f"No curves: {tmp_path / 'none.jsonl'}: " in page.text
    assert "Evaluation" in page.text and page.count("figure", "episode") == 2


def test_a_method_without_rewards_has_a_loss_curve_only(tmp_path, results):
    def drawn(name):
        training = {name: results["training"][name]}
        page = written(tmp_path, {"training": training})
        return [kind for kind in ("loss", "desirable", "undesirable", "baseline")
                if page.count("path", f"curve {kind}")]  # fmt: skip

    assert drawn("hapo_anchored") == ["loss", "desirable", "undesirable"]
    assert drawn("bc_continue") == ["loss"]


def test_a_line_is_broken_where_there_is_no_value():
    drawn = charts.path([0, 1, 2, 3, 4], [5, 6, np.nan, 8, 9], "curve")
    assert 'd="M0.0 5.0L1.0 6.0M3.0 8.0L4.0 9.0"' in drawn
    nothing = charts.Curve("r", np.arange(3.0), np.full(3, np.nan), "loss")
    assert charts.line_chart("Reward", [nothing]) is None


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_lie_within_the_axis(low, span):
    marks = charts.ticks(low, low + span)
    assert 2 <= len(marks) <= 8
    assert low - 1e-6 * span <= marks[0] and marks[-1] <= low + span * (1 + 1e-6)


@pytest.mark.parametrize(
    ("better", "verdict"),
    [(18, "better than base"), (2, "no difference shown"), (0, "no difference shown")],
)
def test_the_terminals_table_says_a_difference_only_where_the_interval_shows_one(
    capsys, better, verdict
):
    base = [False] * 20
    arms = {"base": base, "ours": [True] * better + [False] * (20 - better), "control": base}
    results = {
        "task": "Lift",
        "evaluation": {
            "seeds": [9000, 9019],
            "arms": {name: {"successes": successes} for name, successes in arms.items()},
        },
        "summary": {
            "episodes": 3,
            "takeovers": 2,
            "intervention_ratio": 0.25,
            "labels": {"policy": 30, "human": 10},
        },
    }
    print_results(results, "ours", "control")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"{better}/20 = {better / 20:.0%}" in said and "control" in said
    against = "better than control" if better == 18 else "no difference shown"
    assert (
        said.partition("ours against control: ")[2]
        .partition("deployment:")[0]
        .strip()
        .endswith(against)
    )
    assert all(word in said for word in verdict.split())
    assert "3 episodes, 2 takeovers, intervention ratio 25.0%" in said
    assert "labels recorded: policy 30, human 10" in said
