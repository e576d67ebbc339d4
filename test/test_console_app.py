"""The console's screen and keys, in a terminal of textual's. On the graph: test_graph_console."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from test_console_model import EPISODE, IDLE, episode, status

from hapo_ros.arbitration import Authority, Event, Reason
from hapo_ros.console import app
from hapo_ros.console.app import HELP, KEYS, TALL, ConsoleApp, Panel
from hapo_ros.console.letters import large, small
from hapo_ros.console.model import LOST, State
from hapo_ros.console.requests import ANSWER_S, REPEAT_S
from hapo_ros.gateway_client import GatewayError

SMALLEST, LARGER = (80, 24), (120, 36)
SMALLER = ((72, 24), (80, 20))  # than what everything has its place on
RUNNING = (episode(), status(counts=(0, 8, 0, 0)))


class Peer:
    """Stands where the link to the graph does: keeps what is sent, says what it is told to say."""

    def __init__(self):
        self.sent: list[tuple[str, dict]] = []
        self.connected = True

    def listen(self, hear):
        self.say = hear

    def send(self, call, **fields):
        if not self.connected:
            raise GatewayError("The gateway to the ROS graph ended.")
        self.sent.append((call, fields))
        return len(self.sent)


class Screen:
    """A console, and what an operator does with it."""

    def __init__(self, pilot, peer):
        self.pilot, self.peer, self.app = pilot, peer, pilot.app

    async def say(self, *events):
        """The graph says something."""
        for event in events:
            self.peer.say(event)
        await self.pilot.pause()

    async def press(self, *keys):
        await self.pilot.press(*keys)
        await self.pilot.pause()

    def panel(self, name: str) -> str:
        """What stands in a part of the screen, line by line."""
        panel = self.app.query_one(f"#{name}", Panel)
        rows = range(panel.content_size.height)
        return "\n".join(panel.render_line(row).text.rstrip() for row in rows)

    def words(self, name: str) -> str:
        """The same, without its line breaks."""
        return " ".join(self.panel(name).split())

    @property
    def asked(self) -> list:
        """What was asked: calls, and events of the arbiter."""
        return [fields.get("event", call) for call, fields in self.peer.sent]


@asynccontextmanager
async def console(*events, size=SMALLEST):
    """A console on a screen of a size, after the graph has said ``events``."""
    peer = Peer()
    async with ConsoleApp(peer, "", "", None).run_test(size=size) as pilot:
        screen = Screen(pilot, peer)
        await screen.say(*events)
        yield screen


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The console's clock: stands still, however busy the machine is."""
    clock = SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr(app, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


def run(test):
    """Run an asynchronous function to its end."""
    asyncio.run(test())


# The screen


@pytest.mark.parametrize("size", [SMALLEST, LARGER])
@pytest.mark.parametrize(
    ("authority", "reason"),
    [
        (Authority.POLICY, Reason.POLICY_ACTS),
        (Authority.HUMAN, Reason.HUMAN_ACTS),
        (Authority.HOLD, Reason.DEVICE_LOST_POLICY),
        (Authority.FAULT, Reason.SECOND_ARBITER_SEEN),
    ],
)
def test_the_authority_stands_there_in_large_letters_and_colour_with_its_reason(
    size, authority, reason
):
    async def test():
        async with console(status(authority, reason), size=size) as screen:
            letters = (large if size[1] >= TALL else small)(authority.name)
            text = screen.panel("authority")
            assert all(row.rstrip() in text for row in letters)
            assert reason.sentence in screen.words("authority")
            assert screen.app.query_one("#authority").has_class(authority.name)

    run(test)


def test_every_authority_has_a_colour_of_its_own():
    async def test():
        async with console() as screen:
            colours = {screen.app.query_one("#authority").styles.background}
            for authority in Authority:
                await screen.say(status(authority))
                colours.add(screen.app.query_one("#authority").styles.background)
            assert len(colours) == 5  # and that of LOST, at first

    run(test)


def test_every_reason_fits_on_the_smallest_screen_together_with_an_alarm():
    async def test():
        async with console() as screen:
            await screen.press("e")
            for reason in Reason:
                await screen.say(status(Authority.HOLD, reason))
                assert "EMERGENCY STOP sent" in screen.panel("authority")
                assert reason.sentence in screen.words("authority"), reason

    run(test)


@pytest.mark.parametrize("size", [SMALLEST, LARGER, (200, 60), *SMALLER])
def test_every_part_has_its_place_on_the_screen(size):
    async def test():
        async with console(*RUNNING, size=size) as screen:
            for helping in (False, True):
                shown = [p for p in screen.app.query(Panel) if p.region.area]
                assert sum(panel.region.area for panel in shown) == size[0] * size[1]
                assert {panel.id for panel in shown} >= {"authority", "keys"}
                assert ("help" in {panel.id for panel in shown}) == helping
                await screen.press("question_mark")

    run(test)


@pytest.mark.parametrize("size", SMALLER)
def test_below_the_smallest_screen_the_keys_and_a_question_are_still_seen(size):
    async def test():
        async with console(*RUNNING, size=size) as screen:
            for keys, word in KEYS.values():
                assert f"{keys.replace(',', '/')} {word}" in screen.words("keys")
            await screen.press("x")
            assert f"Discard {EPISODE}? x again" in screen.words("answers")

    run(test)


def test_on_a_low_screen_the_first_keys_are_those_of_the_authority():
    async def test():
        async with console(*RUNNING, size=(80, 8)) as screen:
            keys = screen.app.query_one("#keys", Panel)
            assert screen.panel("keys").splitlines()[0].startswith(" e  EMERGENCY STOP")
            assert keys.region.bottom <= 8

    run(test)


def test_the_screen_follows_a_terminal_that_is_resized():
    async def test():
        async with console(*RUNNING, size=LARGER) as screen:
            assert large("POLICY")[1].rstrip() in screen.panel("authority")
            await screen.pilot.resize_terminal(*SMALLEST)
            await screen.pilot.pause()
            assert small("POLICY")[0].rstrip() in screen.panel("authority")

    run(test)


def test_without_a_deployment_it_says_what_to_do_and_takes_up_one_that_comes():
    async def test():
        async with console() as screen:
            assert small(LOST)[0].rstrip() in screen.panel("authority")
            assert "No deployment is heard" in screen.words("authority")
            assert "UNKNOWN" in screen.panel("device")
            await screen.say(IDLE, status(Authority.HOLD, Reason.NO_EPISODE, episode_id=""))
            assert Reason.NO_EPISODE.sentence in screen.words("authority")

    run(test)


@pytest.mark.parametrize(
    "loss",
    [
        {"event": "authority_lost", "text": "The arbiter is gone. Nobody has control."},
        {"event": "gateway_lost", "text": "The gateway to the ROS graph ended."},
    ],
)
def test_a_loss_is_shown_at_once_and_so_is_its_end(loss):
    async def test():
        async with console(*RUNNING) as screen:
            await screen.say(loss)
            assert screen.app.query_one("#authority").has_class(LOST)
            assert loss["text"] in screen.words("authority")
            assert "RUNNING, as last heard" in screen.words("episode")
            await screen.say({"event": "gateway_started"}, status())
            assert screen.app.query_one("#authority").has_class("POLICY")

    run(test)


def test_the_episode_is_shown_with_its_clock_and_its_counts():
    async def test():
        said = episode(age_s=65.0), status(), status(counts=(0, 30, 10, 2), takeovers=3)
        policy = {"event": "policy", "version": "6464fc6c30d806d6"}
        async with console(*said, policy) as screen:
            text = screen.words("episode")
            for words in (
                "RUNNING 1:05 step 42",
                EPISODE,
                "deployment of Lift, seed 7",
                '"lift the cube"',
                "takeovers 3, intervention ratio 25%",
            ):
                assert words in text
            assert "policy 6464fc6c30d806d6" in screen.words("title")
            strip, counts = screen.panel("steps").splitlines()
            assert set(strip) == {"▄", "█", "·"}
            assert counts.split() == ["▄", "policy", "30", "█", "human", "10", "·", "none", "2"]
            await screen.say(episode(State.FINISHED, outcome="success", bag="/bags/it"))
            assert "RECORDED: success" in screen.words("episode")
            assert "in /bags/it" in screen.words("episode")
            assert "as last heard" not in screen.words("episode")

    run(test)


def test_the_strip_keeps_to_the_width_of_the_screen():
    async def test():
        sums = [status(counts=(0, steps, 0, 0)) for steps in range(0, 1000, 4)]
        async with console(*RUNNING, *sums) as screen:
            strip = screen.panel("steps").splitlines()[0]
            assert strip == "▄" * screen.app.query_one("#steps").content_size.width

    run(test)


@pytest.mark.parametrize("size", [SMALLEST, LARGER])
def test_every_axis_of_the_device_has_a_bar_and_a_number(size):
    async def test():
        device = {"event": "device", "axes": [1.0, -1.0, 0.0, 0.02, None, -0.4], "buttons": [0]}
        async with console(*RUNNING, device, size=size) as screen:
            rows = [line.split() for line in screen.panel("device").splitlines()[2:5]]
            assert [row[:6:3] for row in rows] == [["x", "roll"], ["y", "pitch"], ["z", "yaw"]]
            numbers = [row[2:6:3] for row in rows]
            assert numbers == [["+1.00", "+0.02"], ["-1.00", "nan"], ["+0.00", "-0.40"]]
            bars = {row[column]: row[column + 1] for row in rows for column in (0, 3)}
            half = len(bars["x"]) // 2
            assert bars["x"] == "·" * half + "│" + "█" * half
            assert bars["y"] == "█" * half + "│" + "·" * half
            assert bars["z"] == "·" * half + "│" + "·" * half == bars["pitch"]
            assert bars["roll"][half + 1] == "█" and bars["yaw"][half - 1] == "█"

    run(test)


# Keys


@pytest.mark.parametrize(
    ("key", "asked"),
    [
        ("s", "start_episode"),
        ("d", "start_episode"),
        ("y", "end_episode"),
        ("enter", "end_episode"),
        ("n", "end_episode"),
        ("h", Event.HOLD),
        ("r", Event.RESUME),
        ("e", Event.ESTOP),
        ("c", Event.CLEAR_FAULT),
    ],
)
@pytest.mark.parametrize("situation", ["plain", "caps lock", "with the help open"])
def test_every_key_asks_for_what_it_stands_for(key, asked, situation):
    async def test():
        async with console(*RUNNING) as screen:
            if situation == "with the help open":
                await screen.press("question_mark")
            await screen.press(key.upper() if situation == "caps lock" and key != "enter" else key)
            assert screen.asked == [asked]
            assert "Waiting for the answer" in screen.panel("answers")

    run(test)


def test_every_key_is_named_on_the_smallest_screen_and_in_the_help():
    async def test():
        async with console(*RUNNING) as screen:
            for keys, word in KEYS.values():
                assert f"{keys.replace(',', '/')} {word}" in screen.words("keys")
            await screen.press("question_mark")
            assert screen.panel("help").rstrip() == HELP
            await screen.press("question_mark")
            assert not screen.app.query_one("#help").display

    run(test)


def test_a_refusal_is_shown_in_the_words_of_the_service():
    async def test():
        async with console(*RUNNING) as screen:
            sentence = f"Episode {EPISODE} is running. No second one is started. End it first."
            await screen.press("s")
            await screen.say({"id": 1, "result": {"ok": False, "text": sentence}})
            assert f"✗ start: {sentence}" in screen.words("answers")
            await screen.press("y")
            await screen.say({"id": 2, "result": {"ok": True, "text": "Recorded in /bags/it."}})
            assert screen.panel("answers").startswith("✓ success: Recorded in /bags/it.")

    run(test)


def test_a_problem_and_the_last_answer_are_both_seen_on_the_smallest_screen():
    async def test():
        lost = {"event": "diagnostics", "name": "recorder", "level": 1, "message": "3 lost."}
        async with console(*RUNNING, lost) as screen:
            for number in range(1, 8):
                await screen.press("h")
                await screen.say(
                    {"id": number, "result": {"ok": True, "text": f"Number {number}."}}
                )
            first, second = screen.panel("answers").splitlines()[:2]
            assert first == "✓ hold: Number 7." and second == "! recorder: warning: 3 lost."

    run(test)


def test_discarding_is_asked_back_and_a_second_x_does_it(clock):
    async def test():
        async with console(*RUNNING) as screen:
            await screen.press("x")
            assert f"Discard {EPISODE}? x again" in screen.words("answers") and not screen.asked
            await screen.press("space")  # stands for nothing
            assert "Not discarded" in screen.words("answers")
            await screen.press("x", "question_mark", "x")
            assert "x again" in screen.words("answers") and not screen.asked  # asked anew
            await screen.press("space")
            await screen.press("x", "x")  # held
            assert "x again" in screen.words("answers") and not screen.asked
            clock.now_s += REPEAT_S
            await screen.press("x")
            assert screen.asked == ["discard_episode"]

    run(test)


def test_an_emergency_stop_is_not_delayed_by_a_pending_request_nor_confirmed():
    async def test():
        async with console(*RUNNING) as screen:
            await screen.press("y", "h", "r", "x", "e")  # nothing is answered
            assert screen.asked == ["end_episode", Event.HOLD, Event.RESUME, Event.ESTOP]
            assert "EMERGENCY STOP sent" in screen.panel("authority")
            await screen.say(status(Authority.FAULT, Reason.ESTOPPED))
            assert "sent" not in screen.panel("authority")

    run(test)


def test_an_emergency_stop_that_cannot_be_delivered_says_so_in_large():
    async def test():
        async with console(*RUNNING) as screen:
            await screen.press("e")
            await screen.say({"id": 1, "error": "No such server on the graph."})
            assert "NOT DELIVERED. Use the hardware e-stop." in screen.panel("authority")

    run(test)


def test_a_key_while_the_gateway_is_down_is_refused_and_the_console_goes_on():
    async def test():
        async with console(*RUNNING) as screen:
            screen.peer.connected = False
            await screen.press("h")
            assert "✗ hold: Not sent. The gateway to the ROS graph ended." in screen.words(
                "answers"
            )
            screen.peer.connected = True
            await screen.press("h")
            assert screen.asked == [Event.HOLD]

    run(test)


def test_what_is_not_answered_is_given_up_on_the_screen_by_itself(clock):
    async def test():
        async with console(*RUNNING) as screen:
            await screen.press("h")
            clock.now_s += ANSWER_S + 1.0
            while "No answer" not in screen.panel("answers"):
                await asyncio.sleep(0.01)

    run(test)


@pytest.mark.parametrize("key", ["q", "Q", "ctrl+c", "ctrl+q"])
def test_leaving_asks_the_deployment_for_nothing(key):
    async def test():
        async with console(*RUNNING) as screen:
            await screen.press(key)
            assert not screen.asked and screen.app.return_code == 0
            assert EPISODE in screen.app.model.farewell(app.time.monotonic())

    run(test)


def test_keys_that_make_no_sense_now_are_dimmed_and_still_sent():
    async def test():
        async with console() as screen:
            before = screen.app.query_one("#keys", Panel).render()
            await screen.press("y")
            assert screen.asked == ["end_episode"]
            await screen.say(*RUNNING)
            assert screen.app.query_one("#keys", Panel).render() != before

    run(test)
