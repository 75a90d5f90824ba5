"""What else a repository has: each file says what the others say."""

from __future__ import annotations

import configparser
import re

import yaml

from helpers.repository import ROOT
from signfuse_dist import __version__


def test_a_commit_is_checked_by_what_make_lint_runs() -> None:
    recipe = re.search(r"^lint: install\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert [hook["entry"] for hook in hooks] == commands
    assert all(hook["language"] == "system" for hook in hooks)


def test_continuous_integration_runs_its_script_on_every_python_that_is_supported() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)["jobs"]["test"]
    assert any(step.get("run", "").endswith(".ci/run") for step in job["steps"])
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    required = setup["options"]["python_requires"]
    first, behind = (int(minor) for minor in re.findall(r"3\.(\d+)", required))
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(first, behind)]


def test_the_changelog_has_an_entry_for_the_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.*?)\]", changes, re.MULTILINE)
    assert __version__ in versions
    assert versions[0] in ("Unreleased", __version__)


def test_each_requirement_is_asked_for_once() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    for text in lists:
        names = re.findall(r"^[A-Za-z][\w.-]*", text.strip(), re.MULTILINE)
        assert sorted(set(names)) == sorted(names)
