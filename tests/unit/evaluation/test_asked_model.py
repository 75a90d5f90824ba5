"""Which model is meant: that of a run, a folder that stands alone, or one of the model hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation import asked
from signfuse_dist.evaluation.asked import ask_model


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with runs in it; the hub is asked for nothing."""

    def local(name: Path) -> Path:
        raise UserError(f"asked the hub for {name}")

    monkeypatch.setattr(asked, "local", local)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    "place", ["runs/demo", "runs/dmeo", "runs/demo/finetune", "rns/demo/finetune", "demo", "."]
)
def test_a_mistyped_run_is_no_name_of_the_hub(here: Path, place: str) -> None:
    with pytest.raises(UserError, match="give runs/EXPERIMENT/STAGE"):
        ask_model(Path(place))


def test_a_name_of_the_hub_is_asked_for_there(here: Path) -> None:
    with pytest.raises(UserError, match="asked the hub for somebody/signer"):
        ask_model(Path("somebody/signer"))
