"""The demo's picture of the graph; the demo itself is `make demo`."""

from hapo_ros.demo import _Graph


def test_the_demo_counts_recorded_episodes_and_outlives_other_news():
    graph = _Graph()
    ended = {"event": "episode", "outcome": "success", "bag": "/bags/one"}
    for event in (
        {"event": "policy", "version": "1"},
        {"event": "authority", "takeovers": 2},
        {"event": "authority_lost", "text": "The arbiter is gone."},
        ended | {"outcome": "", "bag": ""},
        ended,
    ):
        graph.hear(event)
    assert graph.episodes == [ended] and graph.takeovers == 2
