"""The small project with more corpora: joints without pictures, and published ones."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from helpers.project import FRAME_SIZE, Project
from helpers.published_trees import write_boston104, write_lines

WEIGHTS = {"synthetic": 3, "tracks": 1}
OPENASL = {"train": 8, "valid": 2, "test": 2}  # clips of each split
_BOSTON_CLIPS = 12


def add_tracks(project: Project) -> None:
    """Pack the drawn corpus again without its videos, and describe it as `tracks`."""
    from signfuse_dist.data.pack import PackConfig, pack

    folder, table = project.folder, project.folder / "corpus" / "tracks.tsv"
    if (folder / "configs" / "data" / "tracks.yaml").exists():
        return
    with (folder / "corpus" / "synthetic.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    columns = [name for name in rows[0] if name != "video"]
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "id": f"t-{row['id']}"} for row in rows)
    for split in ("train", "dev", "test"):
        config = PackConfig(frame_size=FRAME_SIZE, fps=10)
        pack("table", table, split, folder / "tracks" / split, config, workers=0)
    of_drawn = yaml.safe_load((folder / "configs/data/synthetic.yaml").read_text(encoding="utf-8"))
    own = {"corpus": "tracks", "shards": str(folder / "tracks"), "language": "de"}
    path = Path(folder / "configs" / "data" / "tracks.yaml")
    path.write_text(yaml.safe_dump({**of_drawn, **own, "frame_size": FRAME_SIZE}))


def add_published(project: Project, boston: Path | None) -> str:
    """Pack a drawn OpenASL, and RWTH-BOSTON-104; return the override of their blend with the first.

    ``boston`` holds its published tables; None: they are drawn. So there are clips of pictures and
    joints, of joints alone, and of pictures that nobody has looked for joints in: 40 draws.
    """
    from signfuse_dist.data.joints import NoJoints
    from signfuse_dist.data.pack import PackConfig, pack

    folder = project.folder
    config = PackConfig(frame_size=FRAME_SIZE, fps=10)
    name = "drawn" if boston is None else "published"
    tracks = folder / f"boston104-{name}"
    if not tracks.exists():
        root = boston or write_boston104(folder / "boston104", _sentences(), 20)
        for split in ("fit", "dev"):
            pack("boston104", root, split, tracks / split, config, workers=0)
    films = folder / "openasl"
    if not films.exists():
        root = _write_openasl(project)
        for split in OPENASL:
            out = films / split
            pack("openasl", root, split, out, config, workers=0, extractor=NoJoints())
        drawn = yaml.safe_load((folder / "configs/data/synthetic.yaml").read_text("utf-8"))
        own = {"corpus": "openasl", "dev_split": "valid", "language": "ase"}
        path = folder / "configs" / "data" / "openasl.yaml"
        path.write_text(yaml.safe_dump({**drawn, **own}))
    sized = {"frame_size": FRAME_SIZE, "fps": 10}
    boston104 = {**sized, "shards": str(tracks), "test_split": "dev"}
    return override(
        [
            {"corpus": "synthetic", "weight": 2, "data": _drawn(project)},
            {"corpus": "boston104", "max_clips": _BOSTON_CLIPS, "data": boston104},
            {"corpus": "openasl", "data": {**sized, "shards": str(films)}},
        ]
    )


def _sentences() -> dict[str, dict[str, list[tuple[str, int, int]]]]:
    words = ("JOHN", "LOVE", "BOOK", "IX")
    of = {str(n): [(words[n % 4], 0, 9), (words[n // 4 % 4], 10, 19)] for n in range(1, 31)}
    return {"train": of, "test": {"40": of["1"]}}


def _write_openasl(project: Project) -> Path:
    """Write the drawn corpus's videos as OpenASL publishes its own: windows of whole videos."""
    root = project.folder / "openasl-published"
    lines = ["vid\tyid\tstart\tend\traw-text\ttokenized-text\tsplit"]
    for split, count in OPENASL.items():
        for number in range(count):
            film = f"{split}-{number}"
            drawn = project.folder / "corpus" / "clips" / f"train_{number:04d}.mp4"
            (root / "videos").mkdir(parents=True, exist_ok=True)
            (root / "videos" / f"{film}.mp4").write_bytes(drawn.read_bytes())
            end = f"00:00:01.{500 - 50 * number:03d}"
            text = f"this is clip {number} of {split}"
            lines.append(f"{film}:0\t{film}\t00:00:00.200\t{end}\t{text}\t{text}\t{split}")
    write_lines(root / "data" / "openasl-v1.0.tsv", lines)
    return root


def _drawn(project: Project) -> dict[str, Any]:
    return {"shards": str(project.folder / "shards"), "frame_size": FRAME_SIZE}


def override(entries: Sequence[dict[str, Any]]) -> str:
    """Return the override of a blend."""
    return f"data.blend={yaml.safe_dump([*entries], default_flow_style=True, width=9999).strip()}"


def blend(project: Project, **tracks: object) -> str:
    """Return the override of a blend of both; ``tracks`` are further keys of the second."""
    drawn = _drawn(project)
    return override(
        [
            {"corpus": "synthetic", "weight": WEIGHTS["synthetic"], "data": drawn},
            {"corpus": "tracks", "weight": WEIGHTS["tracks"], **tracks},
        ]
    )
