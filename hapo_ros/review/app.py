"""What the review page asks for: episodes, their tracks and frames, edits, totals, training."""

import base64
import getpass
import io
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from hapo_ros import jsonlines, labels
from hapo_ros.arbitration.types import Reason
from hapo_ros.episodes.reader import final_labels
from hapo_ros.episodes.reviews import Conflict, Review, ReviewError
from hapo_ros.review.frames import FrameFile, NoFrame
from hapo_ros.review.index import Entry, Index, Unknown
from hapo_ros.review.recorded import Broken, Recorded
from hapo_ros.review.totals import dashboard, row
from hapo_ros.review.training import Training, TrainingError

STATIC = Path(__file__).with_name("static")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
THUMBNAILS = 4  # pictures in a row's film strip
THUMBNAIL_PIXELS = 96
FOR_EVER = {"cache-control": "private, max-age=86400, immutable"}  # a bag never changes
K = Annotated[int, Query(ge=0, le=10_000)]


class Edits(BaseModel):
    """What a reviewer wants saved. seen: the revision that they were looking at."""

    model_config = ConfigDict(extra="forbid", strict=True)
    seen: int
    by: str = Field(min_length=1, max_length=100)
    edits: list[dict] = Field(min_length=1, max_length=100)


class Goal(BaseModel):
    """A training. keys: of the episodes; empty: of all that can be used."""

    model_config = ConfigDict(extra="forbid", strict=True)
    base: str
    method: str
    name: str
    keys: list[str] = []
    settings: dict = {}
    only_command: bool = False


def make_app(index: Index, training: Training) -> FastAPI:
    """The application; ``guard.Guard`` has to stand before it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pages = {file.name: file for file in STATIC.iterdir() if file.suffix in TYPES}

    # Errors: always one sentence.

    def told(status: int, sentence: str, **more) -> JSONResponse:
        return JSONResponse({"error": sentence, **more}, status)

    @app.exception_handler(Unknown)
    def unknown(request: Request, error: Unknown):
        return told(404, "There is no such episode. It may have been moved; reload the list.")

    @app.exception_handler(NoFrame)
    def no_frame(request: Request, error: NoFrame):
        return told(404, str(error))

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return told(422, f"This request is malformed ({where}: {first['msg']}). Nothing was done.")

    @app.exception_handler(400)
    @app.exception_handler(404)
    @app.exception_handler(405)
    def refused(request: Request, error: HTTPException):
        return told(error.status_code, f"{error.detail}. Nothing was done.")

    @app.exception_handler(TrainingError)
    def no_training(request: Request, error: TrainingError):
        return told(422, str(error))

    # The page itself.

    def page(name: str) -> Response:
        file = pages.get(name)
        if file is None:
            return told(404, "There is nothing of this name.")
        return Response(file.read_bytes(), media_type=TYPES[file.suffix])

    @app.get("/")
    def home():
        return page("index.html")

    @app.get("/static/{name}")
    def static(name: str):
        return page(name)

    @app.get("/api/session")
    def session():
        from hapo_ros.learning.methods import METHODS

        return {
            "folders": [str(folder) for folder in index.folders],
            "reviewer": _user(),
            "default_k": labels.DEFAULT_K,
            "reasons": {int(reason): reason.sentence for reason in Reason},
            "methods": [
                {"name": m.name, "text": m.text} for m in METHODS.values() if m.name != "bc"
            ],
        }

    # Episodes.

    @app.get("/api/episodes")
    def episodes(k: K = labels.DEFAULT_K, since: int = -1):
        """Rows that changed after the count ``since``, and the keys of all, in order."""
        count = index.count
        entries = index.entries()
        changed = [row(entry, k) for entry in entries if entry.changed > since]
        keys = [entry.key for entry in entries]
        return _json({"count": count, "left": index.left, "keys": keys, "rows": changed})

    @app.get("/api/dashboard")
    def totals(k: K = labels.DEFAULT_K):
        return _json(dashboard(row(entry, k) for entry in index.entries()))

    @app.get("/api/episodes/{key}")
    def episode(key: str, k: K = labels.DEFAULT_K):
        """Everything of an episode but for its images; 202 while it is being read."""
        found = index.tracks(key)
        entry = index.entry(key)
        if found is None:  # its images can be looked at meanwhile
            return _json({"row": row(entry, k), "cameras": _cameras(index, key)}, 202)
        if isinstance(found, Broken):
            return _json({"row": row(entry, k)})
        return _json({"row": row(entry, k), "tracks": _tracks(found)} | _review(entry, found, k))

    @app.get("/api/episodes/{key}/labels")
    def episode_labels(key: str, k: K = labels.DEFAULT_K):
        """c_t with another K, and the review as it is now."""
        entry = index.entry(key)
        if not isinstance(entry.found, Recorded):
            return told(409, "This bag was not read yet, or cannot be.")
        return _json({"row": row(entry, k)} | _review(entry, entry.found, k))

    @app.post("/api/episodes/{key}/edits")
    def edit(key: str, edits: Edits, k: K = labels.DEFAULT_K):
        """Save edits: all of them or none."""
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        signed = [{**each, "by": edits.by.strip(), "at": at} for each in edits.edits]
        try:
            entry = index.append(key, signed, edits.seen)
        except Conflict as error:
            entry = index.entry(key)
            more = {"row": row(entry, k)} | _review(entry, entry.found, k)
            return _json({"error": str(error), **more}, 409)
        except ReviewError as error:
            return told(422, str(error))
        return _json({"row": row(entry, k)} | _review(entry, entry.found, k))

    # Images.

    @app.get("/api/episodes/{key}/frames/{camera}/{sequence}")
    def frame(key: str, camera: int, sequence: int):
        """A camera's image at a step, as PNG: what the policy saw, bit for bit."""
        frames = index.frames(key)
        image = frames.image(_camera(frames, camera), sequence)
        return Response(_encoded(image, "PNG"), media_type="image/png", headers=FOR_EVER)

    @app.get("/api/episodes/{key}/strip")
    def film_strip(key: str):
        """Small images of the first camera, from beginning to end, side by side."""
        found, frames = index.entry(key).found, index.frames(key)
        if not isinstance(found, Recorded):
            raise NoFrame("The bag was not read yet, or cannot be.")
        camera, steps = _camera(frames, 0), found.sequences
        chosen = steps[np.linspace(0, len(steps) - 1, THUMBNAILS).round().astype(int)]
        images = [_small(frames.image(camera, int(sequence))) for sequence in chosen]
        data = _encoded(np.concatenate(images, axis=1), "JPEG")
        return Response(data, media_type="image/jpeg", headers=FOR_EVER)

    # Training.

    @app.get("/api/training")
    def training_status():
        return _json({**training.status(), "bases": list(training.bases())})

    @app.post("/api/training")
    def train(goal: Goal):
        rows = {entry.key: (entry, row(entry, labels.DEFAULT_K)) for entry in index.entries()}
        if any(key not in rows for key in goal.keys):
            raise Unknown(goal.keys)
        wanted = [rows[key] for key in goal.keys] if goal.keys else rows.values()
        bags = [entry.path for entry, shown in wanted if shown["used"]]
        given = bags, goal.base, goal.method, goal.name, goal.settings
        if goal.only_command:
            return {"command": training.command(*given)}
        training.start(*given)
        return _json(training.status())

    @app.post("/api/training/cancel")
    def cancel(body: dict):
        training.cancel()
        return _json(training.status())

    return app


def _cameras(index: Index, key: str) -> list[str]:
    try:
        return index.frames(key).cameras()
    except NoFrame:  # whoever reads the whole bag will say why
        return []


def _camera(frames: FrameFile, number: int) -> str:
    """Name of a camera. Raises NoFrame."""
    names = frames.cameras()
    if not 0 <= number < len(names):
        raise NoFrame(f"This episode has {len(names)} cameras that can be shown.")
    return names[number]


def _tracks(found: Recorded) -> dict:
    """The tracks as the page takes them: bytes of arrays, in base 64."""
    tracks, info = found.tracks, found.info
    packed = {
        "sequences": _packed(found.sequences, np.int32),
        "live": _packed(found.timeline, np.uint8),
        "seconds": _packed((tracks["stamp_ns"] - tracks["stamp_ns"][0]) / 1e9, np.float32),
    }
    kinds = {"action": np.float32, "requested": np.float32, "confidence": np.float32}
    kinds |= {"success": np.uint8, "limited": np.uint8, "reason": np.uint8}
    packed |= {name: _packed(tracks[name], kind) for name, kind in kinds.items()}
    size = tracks["action"].shape[1]
    onsets = labels.takeover_onsets(found.timeline.astype(np.int64))
    names = [str(name) for name in info.action_space.get("names") or ()][:size]
    return packed | {
        "takeovers": onsets.tolist() if info.source == "deployment" else [],
        "action_names": names + [f"a{i}" for i in range(len(names), size)],
        "control_hz": _number(info.action_space.get("control_hz"), 20.0),
        "cameras": {name: list(size) for name, size in info.cameras.items()},
        "versions": {str(name): str(version) for name, version in info.versions.items()},
        "note": found.result.note,
        "bag_hash": found.bag_hash,
    }


def _review(entry: Entry, found: Recorded, k: int) -> dict:
    """Labels with this K, and who decided what."""
    review, timeline = entry.review, found.timeline.astype(np.int64)
    plain = final_labels(timeline, found.info.source, k, Review())
    return {
        "k": k,
        "labels": _packed(review.apply(plain), np.uint8),
        "relabelled": _packed(plain, np.uint8),
        "given": _packed(review.overlay(len(plain)), np.int8),
        "review": {
            "revision": review.revision,
            "edits": [dict(e, valid=v) for e, v in zip(review.edits, review.valid, strict=True)],
            "undo": review.undoable(),
            "redo": review.redoable(),
            "outcome": review.outcome,
            "excluded": review.excluded,
            "reviewed": review.reviewed,
            "note": review.note,
            "problem": entry.review_error,
        },
    }


def _packed(values, kind) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()


def _number(value, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and value > 0 else otherwise


def _json(data: dict, status: int = 200) -> Response:
    return Response(jsonlines.line(data), status, media_type="application/json")


def _encoded(image: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    options = {"compress_level": 1} if form == "PNG" else {"quality": 80}
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


def _small(image: np.ndarray) -> np.ndarray:
    """The middle square of an image, as a thumbnail."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(square.resize((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "reviewer"
