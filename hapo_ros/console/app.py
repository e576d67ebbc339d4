"""The console's screen: textual draws what the model says, and keys become requests."""

import asyncio
import os
import signal
import time

from rich.text import Text
from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Static

from hapo_ros import labels
from hapo_ros.console.letters import large, small
from hapo_ros.console.link import Link
from hapo_ros.console.model import LOST, Console
from hapo_ros.console.requests import ESTOP, OF_AUTHORITY
from hapo_ros.devices.reports import AXES

REFRESH_S = 0.2
PANELS = 8  # that compose() makes
USUAL = 24  # lines of a terminal below which what can be done without gives way to the answers
TALL = 30  # lines of a terminal from which on the letters are larger
TOGETHER = 4  # steps in a character of the strip: a fifth of a second
# Name of a request -> keys, and the word on the screen. Two rows of them, that of the authority
# first: a small screen may have no place for more.
KEYS = {
    ESTOP: ("e", "EMERGENCY STOP"),
    "hold": ("h", "hold"),
    "resume": ("r", "resume"),
    "clear fault": ("c", "clear fault"),
    "start": ("s", "start"),
    "demonstration": ("d", "demonstration"),
    "success": ("y,enter", "success"),
    "failure": ("n", "failure"),
    "discard": ("x", "discard"),
}
# Shape, as well as colour, says what a step was.
STEPS = {
    labels.POLICY: ("▄", "#3fb950"),
    labels.HUMAN: ("█", "#58a6ff"),
    labels.NONE: ("·", "#8b949e"),
}
MARKS = {
    "waiting": ("… ", "#d29922"),
    "accepted": ("✓ ", "#3fb950"),
    "refused": ("✗ ", "#ff7b72"),
}
DIM, PROBLEM, ALARM = "#6e7681", "#ff7b72", "bold #ffffff on #b00020"
HELP = """\
s  starts an episode: the policy acts.   d  a demonstration: you act.
y  or enter ends it as a success,  n  as a failure. n while you have the arm
   in a deployment: your correction is not resolved, and not learned from.
x  and, a second later, x again discards it: kept, and never learned from.
h  holds the arm.   r  goes on from a hold, or hands back to the policy.
e  EMERGENCY STOP, at once and latched.   c  clears it, with the cap let go.
   Not safety-rated: a robot's safety function is its hardware e-stop.
Move the cap to take over; button 1 hands back, button 0 is the gripper.
q  leaves; the deployment and its recording go on.   ?  closes this."""


class Heard(Message):
    """Something the link has heard."""

    def __init__(self, said: dict):
        super().__init__()
        self.said = said


class Panel(Static):
    """A part of the screen that is drawn anew only where it has changed."""

    _shown: Text | None = None

    def show(self, text: Text) -> None:
        if text != self._shown:
            self._shown = text
            self.update(text)


class ConsoleApp(App[None]):
    """``hapo console``. link: to the graph. task, instruction, seed: see Console."""

    TITLE = "hapo console"
    ENABLE_COMMAND_PALETTE = False
    VERTICAL_BREAKPOINTS = [  # noqa: RUF012  # textual's own way
        *((0, "-low"), (USUAL, "-usual"), (TALL, "-tall")),
    ]
    BINDINGS = [  # noqa: RUF012  # textual's own way
        *(
            # Upper case too: an emergency stop must not fail for a caps lock.
            Binding(",".join((keys, keys[0].upper())), f"ask('{name}')", word, priority=True)
            for name, (keys, word) in KEYS.items()
        ),
        Binding("question_mark", "help", priority=True),
        Binding("q,Q,ctrl+c,ctrl+q", "quit", priority=True),
    ]
    CSS = """
    Screen { background: #0d1117; color: #e6edf3; overflow: hidden; }
    #title { height: 1; padding: 0 1; background: #21262d; }
    #authority { height: 6; padding: 0 2; text-style: bold; }
    .-tall #authority { height: 9; }
    .POLICY { background: #116329; color: #ffffff; }
    .HUMAN { background: #0b4fb3; color: #ffffff; }
    .HOLD { background: #e3a008; color: #000000; }
    .FAULT { background: #b00020; color: #ffffff; }
    .LOST { background: #3d444d; color: #ffffff; }
    .box { border-top: solid #484f58; border-title-color: #9ea7b3; padding: 0 1; }
    #middle { height: 7; }
    .-low #middle { height: 4; }
    #episode, #device { width: 1fr; height: 100%; }
    #steps { height: 3; }
    .-low #steps { display: none; }
    #answers { height: 1fr; min-height: 3; }
    #help { height: 1fr; display: none; }
    #keys { dock: bottom; height: auto; max-height: 4; padding: 0 1; background: #21262d; }
    .helping #middle, .helping #steps, .helping #answers { display: none; }
    .helping #help { display: block; }
    """

    def __init__(self, link: Link, task: str, instruction: str, seed: int | None):
        super().__init__()
        self._link = link
        domain = os.environ.get("ROS_DOMAIN_ID") or "0"
        self.model = Console(link.send, task, instruction, seed, domain)

    def compose(self) -> ComposeResult:
        yield Panel(id="title")
        yield Panel(id="authority")
        with Horizontal(id="middle"):
            yield self._box("episode", "Episode")
            yield self._box("device", "Operator's device")
        yield self._box("steps", f"Steps, {TOGETHER} a sign, the newest on the right")
        yield self._box("answers", "Answers, newest first")
        yield self._box("help", "Keys")
        yield Panel(id="keys")

    @staticmethod
    def _box(name: str, title: str) -> Panel:
        panel = Panel(id=name, classes="box")
        panel.border_title = title
        return panel

    def on_mount(self) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self._link.listen(lambda said: self.post_message(Heard(said)))
        self.set_interval(REFRESH_S, self.draw)
        self.draw()

    def on_resize(self) -> None:
        self.call_after_refresh(self.draw)

    # What comes in

    @on(Heard)
    def hear(self, message: Heard) -> None:
        self.model.hear(message.said, time.monotonic())
        self.draw()

    def action_ask(self, name: str) -> None:
        self.screen.remove_class("helping")  # the answer is to be seen
        self.model.requests.press(name, time.monotonic())
        self.draw()

    def on_key(self, _event: events.Key) -> None:
        self.model.requests.press_other(time.monotonic())
        self.draw()

    def action_help(self) -> None:
        self.screen.toggle_class("helping")
        self.model.requests.press_other(time.monotonic())
        self.draw()

    # What is shown

    def draw(self) -> None:
        """Bring the screen up to date."""
        panels = {panel.id: panel for panel in self.query(Panel)} if self.screen_stack else {}
        if len(panels) < PANELS:
            return  # it is being put up, or taken down
        now_s = time.monotonic()
        self.model.requests.pass_time(now_s)
        parts = {
            "title": self._title(),
            "authority": self._authority(now_s),
            "episode": self._episode(now_s),
            "device": self._device(now_s),
            "steps": self._steps(),
            "answers": self._answers(now_s),
            "help": Text(HELP),
            "keys": self._keys(now_s),
        }
        for name, text in parts.items():
            panels[name].show(text)

    def _title(self) -> Text:
        version = self.model.policy.get("version", "none is heard")
        return Text.assemble(
            ("hapo console", "bold"), f"   ROS domain {self.model.domain}   policy {version}"
        )

    def _authority(self, now_s: float) -> Text:
        who, why = self.model.authority(now_s)
        self.query_one("#authority").set_classes(who)
        lines = ["", *large(who)] if self.size.height >= TALL else small(who)
        if who != LOST:
            lines[-1] += f"   for {_clock(self.model.since_s(now_s))}"
        alarm = self.model.requests.alarm
        return Text.assemble("\n".join([*lines, ""]), (alarm, ALARM), f"\n{why}")

    def _episode(self, now_s: float) -> Text:
        model, episode = self.model, self.model.episode
        if not episode.get("episode_id"):
            return Text.assemble(
                ("NONE", "bold"), f" yet. The next one has seed {model.requests.next_seed}."
            )
        ratio = model.intervention_ratio
        last = ", as last heard" if model.running and model.lost(now_s) else ""
        rows = [
            f"{last}  {_clock(model.clock_s(now_s))}  step {model.steps}",
            episode["episode_id"],
            f"{episode['source']} of {episode['task']}, seed {episode['seed']}",
            f'"{episode["instruction"]}"',
            f"takeovers {model.takeovers}, intervention ratio "
            + ("-" if ratio is None else f"{ratio:.0%}"),
            episode["bag"] and f"in {episode['bag']}",
        ]
        return _unwrapped(Text.assemble((model.episode_words(), "bold"), "\n".join(rows)))

    def _device(self, now_s: float) -> Text:
        word, meaning = self.model.device(now_s)
        text = Text.assemble((word, "bold"), f"\n{meaning}\n")
        axes = self.model.axes(now_s)
        if len(axes) != len(AXES):
            return text.append("No axes are heard.", DIM)
        # Two columns, of which names and numbers take 24 characters: name, bar, number.
        half = max((self.query_one("#device").content_size.width - 24) // 4, 1)
        for row in range(3):
            for name, value in zip(AXES[row::3], axes[row::3], strict=True):
                text.append(f"{name:<{5 if name in AXES[3:] else 1}} {_bar(value, half)} ")
                text.append(_number(value) + ("\n" if name in AXES[3:] else "  "))
        return text

    def _steps(self) -> Text:
        counts, width = self.model.counts, self.query_one("#steps").content_size.width
        text = Text()
        for label in self.model.strip(max(width, 1), TOGETHER):
            text.append(*STEPS[label])
        text.append("\n")
        for label, (sign, colour) in STEPS.items():
            text.append(sign, colour).append(f" {labels.NAMES[label]} {counts[label]}   ")
        return text

    def _answers(self, now_s: float) -> Text:
        text = Text()
        if question := self.model.requests.question(now_s):
            text.append(f"{question}\n", "reverse bold")
        lines = [(*MARKS[n.mark], f"{n.name}: {n.text}") for n in self.model.requests.notes]
        problems = [("! ", PROBLEM, problem) for problem in self.model.problems(now_s)]
        for number, (sign, colour, line) in enumerate([*lines[:1], *problems, *lines[1:]]):
            text.append(sign, colour).append(f"{line}\n", DIM if number > len(problems) else "")
        return text

    def _keys(self, now_s: float) -> Text:
        first = [self._key(name, now_s) for name in KEYS if name in OF_AUTHORITY]
        first += [_key("?", "help"), _key("q", "quit")]
        second = [self._key(name, now_s) for name in KEYS if name not in OF_AUTHORITY]
        return Text("\n").join([Text("  ").join(first), Text("  ").join(second)])

    def _key(self, name: str, now_s: float) -> Text:
        keys, word = KEYS[name]
        return _key(keys.replace(",", "/"), word, self.model.offers(name, now_s), name == ESTOP)


def _key(keys: str, word: str, offered: bool = True, alarming: bool = False) -> Text:
    if not offered:
        return Text(f" {keys} {word}", DIM)
    return Text.assemble((f" {keys} ", ALARM if alarming else "reverse"), f" {word}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02}"


def _bar(value: float | None, half: int) -> str:
    """``··██│····`` for a value in -1..1; any deflection shows."""
    filled = 0 if not value else max(round(min(abs(value), 1) * half), 1)
    full, rest = "█" * filled, "·" * (half - filled)
    empty = "·" * half
    return f"{rest}{full}│{empty}" if value and value < 0 else f"{empty}│{full}{rest}"


def _number(value: float | None) -> str:
    return "  nan" if value is None else f"{value:+.2f}"


def _unwrapped(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def run(link: Link, task: str, instruction: str, seed: int | None) -> tuple[int, str]:
    """Show the console until it is left; returns the exit code and what is left to say."""
    app = ConsoleApp(link, task, instruction, seed)
    app.run(mouse=False)  # so that the terminal's own selecting and copying works
    return app.return_code or 0, app.model.farewell(time.monotonic())
