"""Reviews beside bags and the page's server: nothing lost or overwritten, no stranger let in."""

import hashlib
import http.client
import json
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcap.reader import SeekingReader
from toy_bags import CORRECTED, HOSTILE, H, N, P, record

import hapo_ros
from hapo_ros import cli, labels
from hapo_ros.episodes import BadEpisode, EpisodeReader, describe, open_episodes, reviews
from hapo_ros.episodes.reviews import Conflict, Review, ReviewError
from hapo_ros.learning import data
from hapo_ros.learning.sampler import BalancedSampler
from hapo_ros.review.frames import ChunkCache, FrameFile, NoFrame
from hapo_ros.review.index import Index
from hapo_ros.review.server import is_loopback, serving
from hapo_ros.review.totals import dashboard, strip, totals
from hapo_ros.review.training import Training, TrainingError

U = labels.UNDESIRABLE
WAIT_S = 60.0


def label(first, last, name):
    return {"kind": "label", "first": first, "last": last, "label": name}


@cache
def identity(path):
    reader = EpisodeReader(path, use_review=False)
    return {"episode_id": reader.info.episode_id, "bag_hash": reader.bag_hash}


def append(path, *edits, seen=None, by="Anna", steps=26):
    """Save edits as the page does."""
    review = reviews.read(path)
    signed = [{"by": by, "at": "2026-11-26T10:00:00+00:00", **edit} for edit in edits]
    return reviews.append(
        path,
        signed,
        seen=review.revision if seen is None else seen,
        steps=steps,
        **identity(path),
    )


def digest(path):
    """Of everything in a bag's folder but for its review."""
    found = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.name != reviews.REVIEW:
            found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()


@pytest.fixture
def bag(tmp_path):
    return record(tmp_path / "bags", "ep1", CORRECTED)


# Reviews and what they do to labels


def test_a_reviewers_label_is_final_and_stays_when_k_is_changed(bag):
    before = digest(bag)
    append(bag, label(2, 12, "human"), label(12, 12, "policy"))
    for k in (0, 3, 10):
        expected = labels.relabel(np.array(CORRECTED), k)
        expected[2:12], expected[12] = H, P
        assert EpisodeReader(bag).labels(k).tolist() == expected.tolist()
    assert EpisodeReader(bag).live.tolist() == list(CORRECTED)
    assert digest(bag) == before


def test_a_review_beside_the_bag_has_its_own_hash(bag):
    assert EpisodeReader(bag).review_hash == ""
    append(bag, {"kind": "note", "note": "ok"})
    content = (bag / reviews.REVIEW).read_bytes()
    assert EpisodeReader(bag).review_hash == hashlib.sha256(content).hexdigest()


def test_what_nobody_executed_stays_none_whatever_a_reviewer_says(bag):
    append(bag, label(0, 25, "human"))
    expected = [N if live == N else H for live in CORRECTED]
    assert EpisodeReader(bag).labels().tolist() == expected


def test_a_label_can_be_given_back_to_the_recording(bag):
    append(bag, label(0, 20, "none"), label(3, 4, None))
    given = reviews.read(bag).overlay(26)
    assert given[2] == N and given[3] == given[4] == reviews.KEPT and given[25] == reviews.KEPT


def test_undo_and_redo_are_edits_too_and_who_and_when_are_kept(bag):
    plain = EpisodeReader(bag).labels().tolist()
    append(bag, label(0, 3, "undesirable"))
    review = append(bag, label(4, 5, "human"), by="Ben")
    assert (review.undoable(), review.redoable()) == (1, None)
    review = append(bag, {"kind": "undo", "edit": 1})
    review = append(bag, {"kind": "undo", "edit": review.undoable()})
    assert EpisodeReader(bag).labels().tolist() == plain and review.undoable() is None
    review = append(bag, {"kind": "undo", "edit": review.redoable()})
    assert EpisodeReader(bag).labels()[:6].tolist() == [U] * 4 + [P, U]  # K = 10 from step 5 on
    review = append(bag, {"kind": "undo", "edit": review.redoable()})
    assert EpisodeReader(bag).labels()[4:6].tolist() == [H, H] and review.redoable() is None
    assert [edit["by"] for edit in review.edits] == ["Anna", "Ben"] + ["Anna"] * 4
    assert all(edit["at"] for edit in review.edits) and review.revision == 6


EDITS = st.one_of(
    st.builds(label, st.integers(0, 12), st.integers(12, 25), st.sampled_from([None, "human"])),
    st.builds(
        lambda name: {"kind": "outcome", "outcome": name}, st.sampled_from(["failure", None])
    ),
    st.builds(lambda note: {"kind": "note", "note": note}, st.text(max_size=20)),
)


@given(st.lists(EDITS, max_size=8))
def test_undoing_everything_gives_back_what_was_recorded_and_redoing_it_what_was_decided(edits):
    made = [{"by": "Anna", "at": "now", **edit} for edit in edits]
    review = Review(tuple(made))

    def after(review, number):
        return Review((*review.edits, {"by": "B", "at": "now", "kind": "undo", "edit": number}))

    undone = review
    while (number := undone.undoable()) is not None:
        undone = after(undone, number)
    assert (undone.overlay(26) == reviews.KEPT).all() and undone.note == "" and not undone.outcome
    redone = undone
    while (number := redone.redoable()) is not None:
        redone = after(redone, number)
    assert redone.overlay(26).tolist() == review.overlay(26).tolist()
    assert (redone.note, redone.outcome) == (review.note, review.outcome)


def test_outcome_exclusion_and_note_are_what_info_says_and_training_goes_by(tmp_path, capsys):
    paths = [record(tmp_path, f"ep{i}", CORRECTED) for i in range(3)]
    demo = record(tmp_path, "demo", (P,) * 12, source="demonstration")
    append(paths[0], {"kind": "outcome", "outcome": "failure"}, label(0, 9, "undesirable"))
    append(paths[1], {"kind": "exclude", "exclude": True}, {"kind": "note", "note": "Bumped."})
    readers, skipped = open_episodes(tmp_path)
    assert [reader.path for reader in readers] == [demo, paths[0], paths[2]]
    assert [each.name for each in skipped] == ["excluded"] and "Bumped." in skipped[0].reason
    assert cli.main(["info", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    shown = {each["episode_id"]: each for each in told["episodes"]}
    assert shown["ep0"]["outcome"] == "failure" and shown["ep0"]["labels"]["undesirable"] == 15
    assert shown["ep0"]["review"]["recorded_outcome"] == "success" and shown["ep1"]["excluded"]
    assert told["summary"]["outcomes"] == {"success": 3, "failure": 1}
    assert cli.main(["info", str(tmp_path)]) == 0
    assert "excluded" in capsys.readouterr().out
    table = data.from_readers(readers, k=10)
    assert [each["outcome"] for each in table.episodes] == ["success", "failure", "success"]
    assert [bool(each["review_hash"]) for each in table.episodes] == [False, True, False]
    groups = table.groups
    assert len(groups["undesirable"]) == 15 + 10
    drawn = BalancedSampler(groups, 8, {"undesirable": 0.5, "expert": 0.5}, 0).effective(0)
    assert Counter(table.labels[drawn].tolist()) == {U: 4, P: 4}


def test_an_episode_that_the_operator_discarded_is_used_once_a_reviewer_gives_it_an_outcome(bag):
    shutil.rmtree(bag)
    bag = record(bag.parent, "ep1", CORRECTED, outcome="discarded")
    assert [each.name for each in open_episodes(bag)[1]] == ["discarded"]
    append(bag, {"kind": "outcome", "outcome": "success"})
    (reader,), skipped = open_episodes(bag)
    assert reader.outcome == "success" and not skipped and reader.result.outcome == "discarded"


BAD_REVIEWS = {
    "not JSON": (b"{not json", "not JSON"),
    "nested without end": (b"[" * 200_000, "not JSON"),
    "no text": (b"\xff\xfe\x00", "not JSON"),
    "another format": (b"[]", "no review of hapo_ros"),
    "another version": (b'{"format": "hapo_ros review", "version": 2}', "version 2"),
    "nothing in it": (b'{"format": "hapo_ros review", "version": 1}', "lacks its edits"),
    "too large": (b" " * (reviews.MAX_BYTES + 1), "larger than"),
    "another bag's": (
        b'{"format": "hapo_ros review", "version": 1, "episode_id": "ep9", "bag_hash": "0", '
        b'"edits": []}',
        "for another bag",
    ),
}


@pytest.mark.parametrize("content, words", BAD_REVIEWS.values(), ids=BAD_REVIEWS)
def test_a_review_that_cannot_be_used_is_named_kept_and_never_trained_against(bag, content, words):
    (bag / reviews.REVIEW).write_bytes(content)
    with pytest.raises(BadEpisode, match=words) as caught:
        EpisodeReader(bag)
    assert caught.value.name == "review" and open_episodes(bag)[1][0].name == "review"
    with pytest.raises(ReviewError, match=words):
        append(bag, label(0, 1, "human"), seen=0)
    assert (bag / reviews.REVIEW).read_bytes() == content


@pytest.mark.parametrize(
    "edit",
    [
        label(3, 2, "human"),
        label(-1, 2, "human"),
        label(0, 26, "human"),
        label(0, 2, "operator"),
        label(0.0, 2, "human"),
        label(True, 2, "human"),
        label(0, 2, ["human"]),
        {"kind": "outcome", "outcome": "discarded"},
        {"kind": "exclude", "exclude": 1},
        {"kind": "note", "note": "x" * 10_001},
        {"kind": "undo", "edit": 1},
        {"kind": ["label"]},
        {"kind": "shell"},
        {"kind": "reviewed", "reviewed": True, "by": " "},
        {"kind": "reviewed", "reviewed": True, "at": None},
    ],
    ids=str,
)
def test_an_edit_that_makes_no_sense_is_refused_and_nothing_is_saved(bag, edit):
    with pytest.raises(ReviewError):
        append(bag, {"kind": "reviewed", "reviewed": True}, edit)
    assert not (bag / reviews.REVIEW).exists()


def test_of_reviewers_who_save_at_the_same_time_nobody_overwrites_another(bag):
    def reviewer(name):
        for i in range(5):
            while True:
                try:
                    append(bag, {"kind": "note", "note": f"{name} {i}"}, by=name)
                    break
                except Conflict:
                    continue

    threads = [threading.Thread(target=reviewer, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    notes = [edit["note"] for edit in reviews.read(bag).edits]
    assert sorted(notes) == sorted(f"{name} {i}" for name in "abcd" for i in range(5))
    assert [file.name for file in bag.iterdir() if file.name.startswith(".")] == []


def test_a_disk_that_gives_out_leaves_the_review_that_was_there(bag):
    append(bag, label(0, 3, "human"))
    before = (bag / reviews.REVIEW).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(ReviewError, match=r"cannot be written.*Nothing was saved"):
            append(bag, label(4, 5, "human"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (bag / reviews.REVIEW).read_bytes() == before
    assert len(list(bag.iterdir())) == 3


# Frames


@pytest.fixture(scope="module")
def long_bag(tmp_path_factory):
    """400 steps in 41 chunks."""
    return record(tmp_path_factory.mktemp("long"), "long", (P,) * 250 + (H,) * 150, size=(6, 8))


def test_a_frame_is_what_the_reader_reads_and_takes_a_few_chunks_of_a_long_bag(long_bag):
    (file,) = long_bag.glob("*.mcap")
    with file.open("rb") as stream:
        chunks = len(SeekingReader(stream).get_summary().chunk_indexes)
    steps = {step.sequence: step.observation.images for step in EpisodeReader(long_bag).steps()}
    for sequence in (399, 0, 200):
        frames = FrameFile(file, ChunkCache())
        image = frames.image("wrist", sequence)
        assert np.array_equal(image, steps[sequence]["wrist"])
        assert frames.unpacked <= 9 < chunks / 4
    frames = FrameFile(file, ChunkCache(limit=1))
    for sequence in range(0, 400, 37):
        for camera in ("front", "wrist"):
            assert np.array_equal(frames.image(camera, sequence), steps[sequence][camera])


def test_unpacked_chunks_are_kept_up_to_a_limit(long_bag):
    (file,) = long_bag.glob("*.mcap")
    cache = ChunkCache(limit=50_000)
    frames = FrameFile(file, cache)
    for sequence in range(0, 400, 10):
        frames.image("front", sequence)
    kept = [chunk.size for chunk in cache._kept.values()]
    assert 0 < sum(kept) <= 50_000 and len(kept) > 1


@pytest.mark.parametrize("camera, sequence", [("../front", 0), ("front", -1), ("front", 27)])
def test_a_frame_that_is_not_there_is_said_not_to_be(bag, camera, sequence):
    (file,) = bag.glob("*.mcap")
    with pytest.raises(NoFrame):
        FrameFile(file, ChunkCache()).image(camera, sequence)


def in_chunks(change):
    """Change every chunk's record, found by the index: from its first byte on, content after it."""

    def changed(content):
        content = bytearray(content)
        summary = SeekingReader(BytesIO(content)).get_summary()
        for chunk in summary.chunk_indexes:
            change(content, chunk.chunk_start_offset)
        return bytes(content)

    return changed


def unpacks_to_everything(content, at):
    content[at + 25 : at + 33] = struct.pack("<Q", 1 << 62)


def longer_than_the_file(content, at):
    content[at + 1 : at + 9] = struct.pack("<Q", 1 << 62)
    content[at + 45 : at + 53] = struct.pack("<Q", 1 << 62)  # of its packed messages, too


def bomb(content, at):
    """What is packed says that it unpacks to 2^40 bytes; its chunk does not."""
    content[at + 53 : at + 66] = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40)


DAMAGE = {
    "cut in half": lambda content: content[: len(content) // 2],
    "a chunk beyond everything": in_chunks(unpacks_to_everything),
    "lengths beyond everything": in_chunks(longer_than_the_file),
    "a bomb": in_chunks(bomb),
    "other bytes": lambda content: b"\x00" * len(content),
    "nothing": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_bag_gives_named_errors_and_no_frame(bag, damage):
    (file,) = bag.glob("*.mcap")
    file.write_bytes(damage(file.read_bytes()))
    if damage is not DAMAGE["a chunk beyond everything"]:  # which the reader need not believe
        with pytest.raises(BadEpisode):
            EpisodeReader(bag)
    with pytest.raises(NoFrame):
        FrameFile(file, ChunkCache()).image("front", 0)


# The server


class Server:
    """What a browser, or anyone, asks of a running page."""

    def __init__(self, address):
        self.address = address
        self.host = address.split("/")[2]

    def ask(self, path, body=None, method=None, headers=()):
        """(status, headers, content) of a request."""
        connection = http.client.HTTPConnection(
            self.host.replace("0.0.0.0", "127.0.0.1"), timeout=30
        )
        given = {"Host": self.host} | ({"Content-Type": "application/json"} if body else {})
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        try:
            connection.request(
                method or ("GET" if body is None else "POST"), path, data, given | dict(headers)
            )
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def get(self, path, **options):
        status, _, content = self.ask(path, **options)
        return status, json.loads(content)

    def rows(self, k=10):
        """All rows, once every bag was read, by folder."""
        deadline = time.monotonic() + WAIT_S
        while True:
            status, found = self.get(f"/api/episodes?k={k}")
            assert status == 200
            if not found["left"]:
                return {row["folder"]: row for row in found["rows"]}
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)

    def edit(self, key, *edits, seen, by="Anna"):
        return self.get(f"/api/episodes/{key}/edits", body={"seen": seen, "by": by, "edits": edits})


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A page on some bags; tests edit one of their own."""
    root = tmp_path_factory.mktemp("served")
    bags = root / "bags"
    for name in ("ep1", "ep2", "ep3", "ep4"):
        record(bags, name, CORRECTED)
    record(bags, "20261124T101112_Lift", (P,) * 6, outcome="failure", cameras={})
    record(bags, "demo", (P,) * 6, source="demonstration")
    elsewhere = record(bags, "elsewhere", (P,) * 4, cameras={"..": [8, 8]}, task="../..")
    elsewhere.rename(bags / "a%2f..%2fetc%2fpasswd")
    broken = record(bags, "broken", (P,) * 4)
    (file,) = broken.glob("*.mcap")
    file.write_bytes(file.read_bytes()[:-200])
    shutil.copytree(bags / "ep1", bags / "ep1_again")
    with serving([bags], root / "checkpoints") as address:
        server = Server(address)
        server.bags, server.root = bags, root
        yield server


def test_the_list_says_what_each_bag_is_and_which_cannot_be_read(served):
    rows = served.rows()
    first = rows["ep2"]
    assert first["state"] == "ready" and first["takeovers"] == 1 and first["used"]
    assert first["labels"] == {"undesirable": 10, "policy": 9, "human": 6, "none": 1}
    assert first["strip"] == "".join(map(str, labels.relabel(np.array(CORRECTED), 10)))
    assert first["instruction"] == HOSTILE and first["intervention_ratio"] == 6 / 25
    assert rows["20261124T101112_Lift"]["day"] == "2026-11-24"
    assert rows["demo"]["intervention_ratio"] is None
    broken = rows["broken"]
    assert (broken["state"], broken["problem_name"]) == ("broken", "truncated")
    assert [flag[0] for flag in rows["ep1_again"]["flags"]] == ["repeated"]
    assert not rows["ep1_again"]["used"] and not broken["used"]
    assert served.rows(k=0)["ep2"]["labels"]["undesirable"] == 0


def test_what_is_relabelled_on_the_page_is_what_the_reader_says_and_the_bag_is_as_it_was(served):
    bag, before = served.bags / "ep1", digest(served.bags / "ep1")
    key = served.rows()["ep1"]["key"]
    status, said = served.edit(key, label(0, 4, "undesirable"), seen=0)
    assert status == 200 and said["review"]["revision"] == 1
    assert said["row"]["labels"] == describe(EpisodeReader(bag))["labels"]
    assert served.rows()["ep1"]["review"]["by"] == "Anna"
    saved = json.loads((bag / reviews.REVIEW).read_text())
    (edit,) = saved["edits"]
    assert edit["by"] == "Anna" and re.fullmatch(r"20\d\d-\d\d-\d\dT.*\+00:00", edit["at"])
    assert digest(bag) == before


def test_of_two_reviewers_the_second_is_told_and_shown_what_the_first_did(served):
    bag, key = served.bags / "ep2", served.rows()["ep2"]["key"]
    assert served.edit(key, {"kind": "exclude", "exclude": True}, seen=0)[0] == 200
    before = (bag / reviews.REVIEW).read_bytes()
    status, said = served.edit(key, {"kind": "note", "note": "fine"}, seen=0, by="Ben")
    assert status == 409 and "Anna saved an edit" in said["error"]
    assert said["review"]["excluded"] and said["review"]["revision"] == 1
    assert (bag / reviews.REVIEW).read_bytes() == before
    status, said = served.edit(key, {"kind": "note", "note": "fine"}, seen=1, by="Ben")
    assert status == 200 and said["review"]["note"] == "fine"
    assert not served.rows()["ep2"]["used"]


def test_a_review_that_another_program_broke_is_said_and_kept(served):
    bag, key = served.bags / "ep3", served.rows()["ep3"]["key"]
    (bag / reviews.REVIEW).write_text("{}")
    status, said = served.edit(key, label(0, 1, "human"), seen=0)
    assert status == 422 and "no review of hapo_ros" in said["error"]
    assert (bag / reviews.REVIEW).read_text() == "{}"
    row = served.rows()["ep3"]
    assert "no review" in row["review"]["problem"] and not row["used"]


@pytest.mark.parametrize(
    "body, status",
    [
        ({"seen": 0, "by": "", "edits": [label(0, 1, "human")]}, 422),
        ({"seen": "0", "by": "A", "edits": [label(0, 1, "human")]}, 422),
        ({"seen": 0, "by": "A", "edits": []}, 422),
        ({"seen": 0, "by": "A", "edits": [label(0, 99, "human")]}, 422),
        ({"seen": 0, "by": "A", "edits": [{"kind": "note", "note": "x"}], "path": "/"}, 422),
        (b"[" * 50_000, 422),
        (b'{"seen": NaN}', 422),
        (b" " * (1 << 20) + b"{}", 413),
    ],
)
def test_a_malformed_request_is_refused_with_a_sentence(served, body, status):
    key = served.rows()["ep4"]["key"]
    found, said = served.get(f"/api/episodes/{key}/edits", body=body)
    assert found in (status, 400) and said["error"]
    assert not (served.bags / "ep4" / reviews.REVIEW).exists()


def test_an_episode_comes_with_tracks_frames_and_a_film_strip(served):
    key = served.rows()["demo"]["key"]
    status, found = served.get(f"/api/episodes/{key}")
    assert status == 200 and found["tracks"]["action_names"] == ["x", "y", "z", "gripper"]
    assert found["tracks"]["takeovers"] == []
    status, headers, content = served.ask(f"/api/episodes/{key}/frames/1/5")
    assert (status, headers["content-type"]) == (200, "image/png")
    from PIL import Image

    path = served.root / "frame.png"
    path.write_bytes(content)
    step = EpisodeReader(served.bags / "demo").steps()[5]
    assert np.array_equal(np.asarray(Image.open(path)), step.observation.images["wrist"])
    status, headers, _ = served.ask(f"/api/episodes/{key}/strip")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    assert served.get(f"/api/episodes/{key}/frames/2/0")[0] == 404
    assert served.ask(f"/api/episodes/{key}/frames/0/6")[0] == 200  # the observation after the end


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/cli.py",
        "/api/episodes/..%2f..%2fetc%2fpasswd/strip",
        "/api/episodes/0123456789abcdef",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_path_of_a_request_reaches_a_file(served, path):
    status, _, content = served.ask(path)
    assert status == 404 and b"def " not in content and b"root:" not in content


def test_a_name_that_would_lead_elsewhere_is_only_a_name(served):
    row = served.rows()["a%2f..%2fetc%2fpasswd"]
    assert row["cameras"] == [".."] and row["task"] == "../.." and row["key"].isalnum()
    status, headers, _ = served.ask(f"/api/episodes/{row['key']}/frames/0/0")
    assert (status, headers["content-type"]) == (200, "image/png")


def test_a_bag_whose_metadata_names_a_file_elsewhere_is_not_followed_there(bag):
    elsewhere = bag.parent / "ep1_0.mcap"
    (bag / "ep1_0.mcap").rename(elsewhere)
    metadata = bag / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("ep1_0.mcap", "../ep1_0.mcap"))
    with pytest.raises(BadEpisode, match="It has no ep1_0"):
        EpisodeReader(bag)


STRANGERS = {
    "another host's name": ({"Host": "evil.example"}, 421),
    "another port": ({"Host": "127.0.0.1:1"}, 421),
    "another origin": ({"Origin": "http://evil.example"}, 403),
    "no origin at all": ({"Origin": "null"}, 403),
    "a page of another site": ({"Sec-Fetch-Site": "cross-site"}, 403),
    "a page on another port": ({"Sec-Fetch-Site": "same-site"}, 403),
    "a form": ({"Content-Type": "text/plain"}, 415),
}


@pytest.mark.parametrize("headers, status", STRANGERS.values(), ids=STRANGERS)
def test_a_request_from_elsewhere_is_refused_and_changes_nothing(served, headers, status):
    key = served.rows()["ep4"]["key"]
    body = {"seen": 0, "by": "A", "edits": [{"kind": "exclude", "exclude": True}]}
    path = f"/api/episodes/{key}/edits"
    found, said = served.get(path, body=body, headers=headers.items())
    assert found == status and said["error"]
    if status != 415:
        assert served.ask("/api/episodes", headers=headers.items())[0] == status
    assert not (served.bags / "ep4" / reviews.REVIEW).exists()


def test_every_answer_forbids_scripts_of_others_and_frames(served):
    for path in ("/", "/static/main.js", "/api/episodes", "/nothing"):
        headers = {name.lower(): value for name, value in served.ask(path)[1].items()}
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_an_address_that_others_reach_needs_the_token(tmp_path):
    with serving([tmp_path], tmp_path, host="0.0.0.0") as address:
        server, token = Server(address), address.rpartition("token=")[2]
        assert len(token) >= 24
        port = server.host.rpartition(":")[2]
        server.host = f"127.0.0.1:{port}"
        assert server.ask("/")[0] == server.ask("/api/session")[0] == 401
        assert server.ask("/?token=wrong")[0] == 401
        status, headers, _ = server.ask(f"/?token={token}")
        assert (status, headers["location"]) == (303, "/")
        assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
        cookie = {"Cookie": headers["set-cookie"].split(";")[0]}
        assert server.ask("/", headers=cookie.items())[0] == 200
        strange = cookie | {"Origin": "http://evil.example"}
        assert server.ask("/api/session", headers=strange.items())[0] == 403


def test_only_this_machines_own_addresses_do_without_a_token():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "localhost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "example.org", "")))


def test_nothing_of_the_page_comes_from_elsewhere():
    static = Path(hapo_ros.__file__).parent / "review" / "static"
    for file in static.iterdir():
        if file.suffix in (".html", ".js", ".css"):
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(
                r"https?://|innerHTML|insertAdjacentHTML|eval\(|document\.write", text
            )


def test_the_labels_have_the_colours_of_the_report():
    package = Path(hapo_ros.__file__).parent

    def colours(text):
        return dict(re.findall(r"--(policy|human|undesirable|none|on-label): (#\w+)", text))

    dark = (package / "report" / "report.css").read_text().split("prefers-color-scheme: dark")[1]
    page = (package / "review" / "static" / "review.css").read_text()
    assert colours(page) == colours(dark) and len(colours(page)) == 5


# Totals


def test_totals_leave_out_what_was_excluded_or_discarded(served):
    rows = list(served.rows().values())
    chosen = [{**row, "review": {**row["review"], "excluded": False}} for row in rows]
    kept = [row for row in chosen if row["folder"] in ("ep1", "20261124T101112_Lift", "demo")]
    total = totals(kept)
    assert total["success"][:2] == [1, 2] and 0 < total["success"][2] < 0.5 < total["success"][3]
    assert total["intervention_ratio"] == 6 / 31 and total["episodes"] == 3
    kept[0]["review"]["excluded"] = True
    assert sum(totals(kept)["success"][:2]) < 3 and totals(kept)["excluded"] == 1
    assert totals([])["success"] is None and totals([])["intervention_ratio"] is None
    status, found = served.get("/api/dashboard")
    assert status == 200 and found["all"]["broken"] == 1
    assert found["days"][0]["day"] == "2026-11-24"
    assert [each["policy_version"] for each in found["versions"]]
    assert dashboard([])["days"] == []


def test_a_strip_shows_the_rarest_label_of_each_cell():
    final = np.full(1000, P)
    final[500], final[700] = U, H
    cells = strip(final)
    assert len(cells) == 96 and cells.count("0") == cells.count("2") == 1


# The index


def test_a_bag_that_comes_goes_or_changes_is_noticed(tmp_path):
    with Index([tmp_path]) as index:
        assert index.entries() == []
        path = record(tmp_path, "ep1", (P,) * 4)
        index.scan()
        (entry,) = index.entries()
        assert entry.path == path and entry.found is None
        shutil.rmtree(path)
        record(tmp_path, "ep1", (P,) * 5)
        index.scan()
        assert index.entry(entry.key) is not entry
        shutil.rmtree(path)
        index.scan()
        assert index.entries() == []


# Training


def test_a_training_is_told_what_is_in_the_list_and_nothing_else(tmp_path):
    training, bags = Training(tmp_path / "checkpoints"), [tmp_path / "a bag"]
    command = training.command(bags, "lift_base (shipped)", "hapo", "better", {"k": 5})
    assert command.startswith("hapo optimize ") and f"'{bags[0]}'" in command
    assert str(tmp_path / "checkpoints" / "better") in command
    good = {"base": "lift_base (shipped)", "method": "hapo", "name": "better"}
    for wrong in (
        {"base": "/etc"},
        {"method": "bc"},
        {"name": "../better"},
        {"name": ".hidden"},
        {"name": "a/b"},
    ):
        with pytest.raises(TrainingError):
            training.command(bags, **(good | wrong), settings={})
    with pytest.raises(TrainingError, match="no episode"):
        training.command([], **good, settings={})
    (tmp_path / "checkpoints" / "better").mkdir(parents=True)
    with pytest.raises(TrainingError, match="exists already"):
        training.start(bags, **good, settings={})


def test_the_page_starts_only_what_can_be_used_and_says_where_there_is_no_optimizer(
    served, ros_domain
):
    rows = served.rows()
    goal = {"base": "lift_base (shipped)", "method": "hapo", "name": "better", "settings": {}}
    status, said = served.get("/api/training", body={**goal, "only_command": True})
    assert status == 200
    used = {row["folder"] for row in rows.values() if row["used"]}
    named = {Path(word).name for word in said["command"].split() if "/bags/" in word}
    assert named == used and "broken" not in used
    assert served.get("/api/training", body={**goal, "base": "/etc/passwd"})[0] == 422
    assert served.get("/api/training", body=goal)[0] == 200
    deadline = time.monotonic() + WAIT_S
    while (state := served.get("/api/training")[1])["state"] == "running":
        assert time.monotonic() < deadline
        threading.Event().wait(0.1)
    assert state["state"] == "failed" and "No such server" in state["text"]


# The command


@contextmanager
def running(*arguments):
    command = [sys.executable, "-m", "hapo_ros.cli", "review", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_hapo_review_says_where_it_is_and_ends_on_ctrl_c(tmp_path):
    record(tmp_path, "ep1", (P,) * 4)
    with running(tmp_path, "--no-browser", "--port", 0) as process:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        assert Server(address).ask("/")[0] == 200
        taken = address.rsplit(":", 1)[1].strip("/")
        assert cli.main(["review", str(tmp_path), "--no-browser", "--port", taken]) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0
        assert "Traceback" not in process.stderr.read()


def test_hapo_review_of_nothing_is_an_error(tmp_path, capsys):
    assert cli.main(["review", str(tmp_path / "nowhere"), "--no-browser", "--port", "0"]) == 1
    assert "There is no folder" in capsys.readouterr().err
