"""The small project with a second corpus: the same signers, joints without pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

from helpers.project import FRAME_SIZE, Project

WEIGHTS = {"synthetic": 3, "tracks": 1}


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


def blend(project: Project, **tracks: object) -> str:
    """Return the override of a blend of both; ``tracks`` are further keys of the second."""
    own = {"shards": str(project.folder / "shards"), "frame_size": FRAME_SIZE}
    entries = [
        {"corpus": "synthetic", "weight": WEIGHTS["synthetic"], "data": own},
        {"corpus": "tracks", "weight": WEIGHTS["tracks"], **tracks},
    ]
    return f"data.blend={yaml.safe_dump(entries, default_flow_style=True, width=9999).strip()}"
