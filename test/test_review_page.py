"""The review page in a real browser: what a person sees, presses and drags."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from browser import Browser, chromium
from toy_bags import CORRECTED, HOSTILE, H, P, record

from hapo_ros import cli
from hapo_ros.episodes import EpisodeReader, open_episodes
from hapo_ros.learning import data
from hapo_ros.learning.sampler import BalancedSampler
from hapo_ros.review.server import serving

if not chromium():
    pytest.skip("There is no Chromium on this machine.", allow_module_level=True)

pytestmark = pytest.mark.timeout(400)  # the browser takes its time where much else runs

ROWS = "document.querySelectorAll('.row')"
READ = f"{ROWS}.length && !document.querySelector('.reading').textContent"
READY = "document.querySelector('.episode-page')?.dataset.ready"
HISTORY = "document.querySelectorAll('.history li').length"
STEP = "document.querySelector('.episode-page').dataset.step"
SHOWN = "document.querySelector('.cameras').dataset.step"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Anna looks at some bags; the browser and the server are the same for all tests."""
    root = tmp_path_factory.mktemp("page")
    bags = root / "bags"
    for name in ("20261126T100000_first", "20261126T100100_second", "20261126T100200_third"):
        record(bags, name, CORRECTED)
    record(bags, "20261126T100300_long", (P,) * 400 + (H,) * 200, size=(6, 8))
    broken = record(bags, "20261126T100400_broken", (P,) * 4)
    (file,) = broken.glob("*.mcap")
    file.write_bytes(file.read_bytes()[:-300])
    with serving([bags], root / "checkpoints") as address, Browser() as browser:
        anna = browser.page(address)
        anna.wait(READ)
        anna.evaluate("localStorage.setItem('hapo.reviewer', 'Anna')")
        anna.call("Page.reload")
        yield SimpleNamespace(anna=anna, browser=browser, address=address, bags=bags, root=root)
        assert [each for each in anna.complaints() if "409" not in each] == []


def open_episode(person, name):
    """Go to the list, and to an episode from there."""
    person.evaluate("location.hash = ''")
    row = f"[...{ROWS}].find((row) => row.textContent.includes('{name}'))"
    key = person.wait(f"{READ} && {row}?.dataset.key")
    person.evaluate(f"location.hash = 'e/{key}'")
    person.wait(f"location.hash === '#e/{key}' && {READY} && {SHOWN}")
    return key


def at_step(person, step, row=75):
    """(x, y) of a control step on the timeline; row: of pixels from its top."""
    return person.evaluate(
        f"(() => {{ const t = document.querySelector('.timeline').getBoundingClientRect();"
        f" const n = Number(document.querySelector('.step').textContent.split('/ ')[1]) + 1;"
        f" return [t.x + 128 + ({step} + 0.5) / n * (t.width - 142), t.y + {row}]; }})()"
    )


def test_the_list_shows_every_bag_and_runs_no_script_of_theirs(page):
    anna = page.anna
    anna.wait(f"{READ} && {ROWS}.length === 5")
    text = anna.evaluate("document.body.innerText")
    assert HOSTILE in text and "The bag is damaged" in text and "To review" in text
    images = "[...document.querySelectorAll('.film img')]"
    anna.wait(f"{images}.length === 4 && {images}.every((image) => image.naturalWidth)")
    assert anna.evaluate("document.querySelectorAll('.row script').length") == 0
    anna.press("/")
    for letter in "long":
        anna.press(letter)
    anna.wait(f"{ROWS}.length === 1")
    anna.evaluate("document.getElementById('search').value = ''")
    anna.press("Backspace")
    anna.evaluate("document.getElementById('search').dispatchEvent(new Event('input'))")
    anna.press("Escape")
    anna.wait(f"{ROWS}.length === 5")
    anna.press("ArrowDown")
    anna.press("Enter")
    anna.wait("location.hash.startsWith('#e/')")


def test_a_bag_that_cannot_be_read_is_shown_with_its_reason(page):
    anna = page.anna
    anna.evaluate("location.hash = ''")
    key = anna.wait(f"{READ} && [...{ROWS}].find((r) => r.querySelector('.problem'))?.dataset.key")
    anna.evaluate(f"location.hash = 'e/{key}'")
    anna.wait("document.body.innerText.includes('This bag cannot be read')")
    assert "its checksums do not match" in anna.evaluate("document.body.innerText")


def test_a_long_episode_is_scrubbed_played_and_stepped_through_with_the_right_images(page):
    anna = page.anna
    open_episode(anna, "_long")
    for step in (500, 20):
        where = at_step(anna, step, row=36)
        anna.drag(where, where)
        anna.wait(f"Math.abs({STEP} - {step}) <= 1 && {SHOWN} === {STEP}")
    anna.press("ArrowRight")
    anna.press("ArrowRight", shift=True)
    anna.press("t")
    anna.wait(f"{STEP} === '400' && {SHOWN} === '400'")
    seen = anna.evaluate(
        "(() => { const c = document.querySelector('.camera canvas');"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; })()"
    )
    steps = EpisodeReader(page.bags / "20261126T100300_long").steps()
    shown = np.array(seen, np.uint8).reshape(6, 8, 4)[..., :3]
    assert np.array_equal(shown, steps[400].observation.images["front"])
    assert anna.evaluate("document.querySelector('.camera .label').textContent") == "human"
    anna.press("End")
    anna.wait(f"{STEP} === '599'")
    anna.press("Home")
    anna.press(" ")
    anna.wait(f"{STEP} > 5 && {SHOWN} > 0")
    anna.press(" ")


def test_what_is_relabelled_by_dragging_is_what_info_and_the_sampler_take(page, capsys):
    anna, bag = page.anna, page.bags / "20261126T100000_first"
    files = [file for file in bag.iterdir() if file.name != "review.json"]
    before = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    open_episode(anna, "_first")
    anna.drag(at_step(anna, 0), at_step(anna, 3))
    anna.wait("document.querySelector('.chooser')?.textContent.includes('4 steps')")
    anna.click(".chooser [data-label=undesirable]")
    anna.wait(f"{HISTORY} === 1")
    anna.press("]")  # the selection, from its beginning to the step it is at
    anna.press("3")
    anna.wait(f"{HISTORY} === 2")
    anna.press("u")
    anna.wait(f"{HISTORY} === 3")
    anna.press("Escape")
    anna.press("n")
    anna.wait("document.querySelector('.outcomes .failure').ariaPressed === 'true'")
    anna.evaluate("dispatchEvent(new CustomEvent('set-k', { detail: 2 }))")
    anna.wait("document.querySelector('.k-line b').textContent === 'K = 2'")
    assert "undesirable 6" in anna.evaluate("document.querySelector('.side').innerText")
    anna.evaluate("dispatchEvent(new CustomEvent('set-k', { detail: 10 }))")
    reader = EpisodeReader(bag)
    assert reader.labels(2).tolist()[:16] == [0] * 4 + [P] * 9 + [0, 0, H]
    assert reader.outcome == "failure"
    assert {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files} == before
    assert cli.main(["info", str(bag), "--k", "2", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["episodes"]
    assert told["labels"]["undesirable"] == 6 and told["review"]["by"] == ["Anna"]
    table = data.from_readers(open_episodes(bag)[0], k=2)
    assert table.episodes[0]["outcome"] == "failure"
    drawn = BalancedSampler(table.groups, 6, {"undesirable": 1.0}, 0).effective(0)
    assert Counter(table.sequence[drawn].tolist()) == Counter([0, 1, 2, 3, 13, 14])


def test_of_two_people_the_second_sees_what_the_first_did_before_it_is_saved(page):
    anna, ben = page.anna, page.browser.page(page.address)
    ben.wait(READ)
    ben.evaluate("localStorage.setItem('hapo.reviewer', 'Ben')")
    ben.call("Page.reload")
    open_episode(ben, "_second")
    ben.call("Network.enable")  # his page is to hear of nothing by itself meanwhile
    ben.call("Network.setBlockedURLs", urls=["*/labels?*"])
    open_episode(anna, "_second")
    anna.press("x")
    anna.wait(f"{HISTORY} === 1")
    ben.press("n")
    text = "document.querySelector('.side').innerText"
    ben.wait("!!document.querySelector('#conflict')")
    assert "Anna saved an edit of this episode meanwhile" in ben.evaluate(text)
    assert ben.evaluate(HISTORY) == 1
    ben.click("#conflict button")
    ben.wait(f"{HISTORY} === 2 && !document.querySelector('#conflict')")
    review = EpisodeReader(page.bags / "20261126T100100_second").review
    assert [(e["by"], e["kind"]) for e in review.edits] == [("Anna", "exclude"), ("Ben", "outcome")]


def test_reviewed_leads_to_the_next_and_the_dashboard_counts_it(page):
    anna = page.anna
    key = open_episode(anna, "_third")
    anna.press("c")
    for letter in "ok":
        anna.press(letter)
    anna.press("Escape")
    anna.wait(f"{HISTORY} === 1")
    anna.press("Enter")
    anna.wait(f"location.hash !== '#e/{key}' && location.hash.startsWith('#e/')")
    reader = EpisodeReader(page.bags / "20261126T100200_third")
    assert reader.review.reviewed and reader.review.note == "ok"
    anna.evaluate("location.hash = 'dashboard'")
    anna.wait("document.querySelectorAll('.dashboard svg').length === 4")
    readers, _ = open_episodes(page.bags, accept_discarded=True)
    left = sum(not (reader.review.reviewed or reader.excluded) for reader in readers)
    assert f"{left} left" in anna.evaluate("document.querySelector('.dashboard').textContent")


def test_the_training_dialog_names_the_command(page):
    anna = page.anna
    anna.click("#train")
    anna.wait("document.querySelector('dialog')?.open")
    anna.click("dialog footer .ghost")
    command = anna.wait("document.querySelector('dialog pre').textContent")
    used = {Path(word).name for word in command.split() if "/bags/" in word}
    readers, _ = open_episodes(page.bags)
    assert command.startswith("hapo optimize") and used == {reader.path.name for reader in readers}
    anna.press("Escape")
    anna.wait("!document.querySelector('dialog')")


def test_five_hundred_episodes_are_listed_filtered_and_walked_through(page, tmp_path):
    one = record(tmp_path / "one", "one", (P,) * 2, cameras={})
    for i in range(500):
        shutil.copytree(one, tmp_path / "many" / f"20261126T{i // 60:02d}{i % 60:02d}00_Lift_s{i}")
    with serving([tmp_path / "many"], tmp_path) as address:
        many = page.browser.page(address)
        many.wait(f"{ROWS}.length === 500")
        many.press("End")
        many.wait("document.querySelector('.row.current')?.textContent.includes('s0')")
        box = many.evaluate("document.querySelector('.row.current').getBoundingClientRect().bottom")
        assert box <= 901
        many.press("/")
        for letter in "s49":
            many.press(letter)
        many.wait(f"{ROWS}.length === 11")  # 49, 490 to 499
        assert many.complaints() == []
