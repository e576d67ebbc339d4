"""An episode in Rerun: what the cameras saw, what was done, and who decided it."""

from pathlib import Path

from hapo_ros import labels
from hapo_ros.episodes.formats.common import need
from hapo_ros.episodes.reader import EpisodeReader

STEP, TIME = "step", "time"  # the timelines: sequence, and s since the first step
COLOURS = {  # the report's
    labels.UNDESIRABLE: (0xC8, 0x4E, 0x00),
    labels.POLICY: (0x00, 0x5B, 0x9A),
    labels.HUMAN: (0x00, 0x85, 0x60),
    labels.NONE: (0x7D, 0x86, 0x92),
}


def view(reader: EpisodeReader, k: int = labels.DEFAULT_K, save: Path | None = None) -> None:
    """Open the episode in Rerun's viewer, or write it to a new .rrd file.

    k: K of the labels. Raises NotInstalled without rerun-sdk, FileExistsError where the file is
    there already, and BadEpisode.
    """
    rr = need("rerun", "view")
    if save is not None and save.exists():
        raise FileExistsError(f"{save} exists already. Nothing was overwritten. Choose another.")
    steps = reader.steps(k)
    stream = rr.RecordingStream("hapo_ros", recording_id=reader.info.episode_id)
    if save is None:
        stream.spawn()
    else:
        save.parent.mkdir(parents=True, exist_ok=True)
        stream.save(save)
    stream.send_blueprint(_blueprint(reader))
    _log(stream, reader, steps)
    stream.flush()
    stream.disconnect()


def _log(stream, reader: EpisodeReader, steps) -> None:
    rr = need("rerun", "view")
    info = reader.info
    size = len(steps[0].action)
    names = list(info.action_space.get("names") or ())
    names = names if len(names) == size else [str(i) for i in range(size)]
    text = "\n".join(
        f"- {name}: {value}"
        for name, value in (
            ("task", info.task),
            ("instruction", info.instruction),
            ("source", info.source),
            ("outcome", reader.outcome),
            ("note", reader.result.note),
        )
        if value
    )
    stream.log("episode", rr.TextDocument(text, media_type="text/markdown"), static=True)
    states = rr.StateConfiguration(
        values=list(labels.NAMES.values()), colors=[COLOURS[c] for c in labels.NAMES]
    )
    for lane in ("labels/label", "labels/live"):
        stream.log(lane, states, static=True)
    stream.log("action", rr.SeriesLines(names=names), static=True)
    previous: dict[str, int] = {}
    for step in steps:
        stream.set_time(STEP, sequence=step.sequence)
        stream.set_time(TIME, duration=(step.stamp_ns - steps[0].stamp_ns) / 1e9)
        for camera, image in step.observation.images.items():
            stream.log(f"cameras/{camera}", rr.Image(image).compress(jpeg_quality=90))
        stream.log("action", rr.Scalars(step.action))
        stream.log("pose", rr.Scalars(step.observation.eef_pose[:3]))
        for lane, label in (("labels/label", step.label), ("labels/live", step.live)):
            if previous.get(lane) != label:
                previous[lane] = label
                stream.log(lane, rr.StateChange(state=labels.NAMES[label]))


def _blueprint(reader: EpisodeReader):
    """Cameras side by side over the labels, the actions and the hand's position."""
    rrb = need("rerun.blueprint", "view")
    cameras = [
        rrb.Spatial2DView(origin=f"cameras/{name}", name=name) for name in reader.info.cameras
    ]
    rows = [
        rrb.StateTimelineView(origin="labels", name="who decided (label: after relabelling)"),
        rrb.TimeSeriesView(origin="action", name="action"),
        rrb.TimeSeriesView(origin="pose", name="position of the hand (m)"),
    ]
    shares = [1, 2, 2]
    if cameras:
        rows, shares = [rrb.Horizontal(*cameras), *rows], [4, *shares]
    return rrb.Blueprint(
        rrb.Horizontal(
            rrb.Vertical(*rows, row_shares=shares),
            rrb.TextDocumentView(origin="episode", name=reader.info.episode_id),
            column_shares=[4, 1],
        ),
        collapse_panels=True,
    )
