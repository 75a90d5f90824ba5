"""Files of configuration that are no such files: each is refused by its name."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.command_line import refused
from signfuse_dist.ablation.rows import read_ablations
from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.engine.ds_config import resolve
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.protocols import read_presets
from signfuse_dist.experiment import load_run
from signfuse_dist.files import parse_yaml, read_json, read_yaml
from signfuse_dist.plan import make_plan
from signfuse_dist.preflight.machine import read_launch
from signfuse_dist.report.published import read_published

NINES = "9" * 5000
LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
# What a file holds, and what is said of it after its name.
NO_YAML = {
    "a mapping that does not end": (b"a: [", ", line 1, column 5: not YAML"),
    "a tab before a key": (b"a:\n\tb: 1", ", line 2, column 1: not YAML: .*found character"),
    "no UTF-8": (b"a: \xe4", ": not UTF-8 text .byte 3"),
    "UTF-16": ("a: 1".encode("utf-16"), ": not UTF-8 text .byte 0"),
    "a NUL": (b"a: \x00", ": not YAML: unacceptable character"),
    "a key twice": (b"a: 1\nb: 2\na: 3", ", line 3, column 1: .*'a' is there twice, first in line"),
    "a key twice, deeper": (b"a: {b: 1, b: 1}", ", line 1, column 11: .*'b' is there twice"),
    "an integer of 5,000 digits": (f"a: {NINES}".encode(), ", line 1, column 4: .*is no value"),
    "an integer of 5,000 digits in hexadecimal": (b"a: 0x" + b"f" * 5000, ".*than 64 bits"),
    "an integer of 65 bits": (b"a: 18446744073709551616", ", line 1, column 4: .*than 64 bits"),
    "a day that there is not": (b"a: 2024-13-45", ", line 1, column 4: .*'2024-13-45' is no value"),
    "a tag of another kind": (b"a: !!timestamp x", ", line 1, column 4: .*'x' is no value"),
    "lists 50,000 deep": (b"[" * 50_000, ", line 1, column 51: .*more than 50 levels deep"),
    "blocks 50,000 deep": (b"- " * 50_000, ".*more than 50 levels deep"),
    "mappings 50,000 deep": (b"{" * 50_000, ".*more than 50 levels deep"),
    "keys 50,000 deep": (b"? " * 50_000, ".*more than 50 levels deep"),
    "a billion laughs": (LAUGHS.encode(), ", line 5, .*more than 100000 values"),
    "an alias of itself": (b"a: &a [1, *a]", r", line 1, column 11: .*\*a stands inside"),
    "an alias of nothing": (b"a: *b", ", line 1, column 4: .*undefined alias"),
    "two documents": (b"a: 1\n---\nb: 2", ", line 2, column 1: not YAML"),
    "an object of Python": (b"a: !!python/object/apply:os.getcwd []", ".*could not determine"),
    "a mapping as a key": (b"? {a: 1}\n: 2", ", line 1, column 3: .*unhashable"),
}
NO_SETTINGS = {
    "an empty file": b"",
    "a byte order mark alone": b"\xef\xbb\xbf",
    "a list": b"- a\n- b",
    "a number": b"3",
    "a text": b"demo",
}
READERS: dict[str, Callable[[Path], object]] = {
    "experiment": lambda path: load_run(str(path), "finetune"),
    "ablation": lambda path: read_ablations(str(path)),
    "launch": read_launch,
}
each_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())


@each_reader
@pytest.mark.parametrize(("content", "said"), NO_YAML.values(), ids=NO_YAML.keys())
def test_a_file_that_is_no_yaml_is_refused_by_name_and_line(
    read: Callable[[Path], object], content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    begun = time.process_time()
    with pytest.raises(UserError, match=rf"(?s)^(--launch )?{re.escape(str(path))}{said}") as error:
        read(path)
    assert time.process_time() - begun < 10
    assert len(str(error.value)) < 600, "what is long is shortened"


@each_reader
@pytest.mark.parametrize("content", NO_SETTINGS.values(), ids=NO_SETTINGS.keys())
def test_a_file_without_settings_is_refused_by_name(
    read: Callable[[Path], object], content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        read(path)


@pytest.mark.parametrize("read", [read_presets, read_published], ids=["presets", "published"])
@pytest.mark.parametrize("name", ["a key twice", "an integer of 65 bits", "a billion laughs"])
def test_a_file_of_published_figures_or_protocols_is_refused_alike(
    read: Callable[[str], object], name: str
) -> None:
    with pytest.raises(UserError, match=r"^(presets|published)\.yaml, line \d, column \d"):
        read(NO_YAML[name][0].decode())


def test_what_yaml_allows_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfbase: &base {rate: 1e-3, layers: [1, 2]}\r\n"
        b"own:\r\n  <<: *base\r\n  rate: 2.0\r\nagain: [*base, *base]\r\n"
        b"seed: 9223372036854775807\r\n"
    )
    base = {"rate": "1e-3", "layers": [1, 2]}
    assert read_yaml(path) == {
        "base": base,
        "own": {**base, "rate": 2.0},
        "again": [base, base],
        "seed": 2**63 - 1,
    }
    assert parse_yaml("'a': 1\nb: {a: 1}", "") == {"a": 1, "b": {"a": 1}}


OVERRIDES = {
    "a rate that overflows": ("stage.learning_rate=1e400", "inf is not a finite number"),
    "a rate that overflows, with a point": ("stage.learning_rate=1.0e+400", "inf is not a finite"),
    "an infinite rate": ("stage.learning_rate=.inf", "inf is not a finite number"),
    "an infinite rate in words": ("stage.learning_rate=inf", "inf is not a finite number"),
    "a rate that is no number": ("stage.learning_rate=nan", "nan is not a finite number"),
    "an infinite temperature": ("loss.temperature=.inf", "inf is not a finite number"),
    "an infinite patience": ("train.hang_seconds=.inf", "inf is not a finite number"),
    "an infinite frame rate": ("data.fps=.inf", "inf is not a finite number"),
    "a seed of 5,000 digits": (f"train.seed={NINES}", "(5000 characters)' is no value"),
    "a rate of 5,000 digits": (f"stage.learning_rate={NINES}", "(5000 characters)' is no value"),
    "a seed of 65 bits": ("train.seed=18446744073709551616", "an integer of more than 64 bits"),
    "a nest": (f"model.dim={'[' * 50_000}", "more than 50 levels deep"),
    "a key twice": ("augment={crop: 1, crop: 2}", "expected section.key=value"),
    "a value twice": ("model.scales={a: 1, a: 2}", "'a' is there twice"),
}


@pytest.mark.parametrize(("override", "said"), OVERRIDES.values(), ids=OVERRIDES.keys())
def test_an_override_that_is_no_value_is_refused_in_a_line(
    override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "check", "demo", "--world-size", "1", override)
    assert said in error
    assert override.partition("=")[0] in error
    assert len(error) < 1000


LAUNCH: dict[str, tuple[dict[str, Any], str]] = {
    "words for a number": ({"num_processes": "four"}, "num_processes: 'four' is not an int"),
    "a numeral in quotes": ({"num_processes": "4"}, "num_processes: '4' is not an int"),
    "half a process": ({"num_processes": 1.5}, "num_processes: 1.5 is not an int"),
    "no process": ({"num_processes": 0}, "num_processes: 0 is not at least 1"),
    "a list of processes": ({"num_processes": [4]}, "num_processes: [4] is not an int"),
    "a list of machines": ({"num_machines": [1, 2]}, "num_machines: [1, 2] is not an int"),
    "words for a port": ({"main_process_port": "http"}, "main_process_port: 'http' is not an int"),
    "a port beyond all": ({"main_process_port": 70000}, "main_process_port: 70000 is not at most"),
    "a rank below all": ({"machine_rank": -1}, "machine_rank: -1 is not at least 0"),
    "a list of hosts": (
        {"main_process_ip": ["a", "b"]},
        "main_process_ip: ['a', 'b'] is not",
    ),
    "words for a switch": ({"use_cpu": "maybe"}, "use_cpu: 'maybe' is not a bool"),
    "a list of precisions": (
        {"mixed_precision": ["bf16"]},
        "mixed_precision: ['bf16'] is not one of no, fp16",
    ),
    "a list of kinds": ({"distributed_type": ["NO"]}, "distributed_type: ['NO'] is not a str"),
    "a template without a key": (
        {"deepspeed_config": "zero2"},
        "deepspeed_config: 'zero2' is",
    ),
}


@pytest.mark.parametrize(("settings", "said"), LAUNCH.values(), ids=LAUNCH.keys())
def test_a_launch_file_with_a_value_that_is_none_is_refused_by_key(
    settings: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps({"num_processes": 2, **settings}))  # JSON is YAML
    error = refused(capsys, "check", "demo", "--world-size", "2", "--launch", str(path))
    assert f"--launch {path}: not a launch file of Accelerate" in error
    assert said in error


TEMPLATE = '{"gradient_clipping": "auto", "torch_autocast": {"enabled": "auto"}, %s}'
TEMPLATES = {
    "no JSON": ("{", "not JSON (Expecting property name"),
    "empty": ("", "not JSON (Expecting value"),
    "a list": ("[]", "holds something else than an object"),
    "a nest": ("[" * 100_000, "not JSON (it is nested too deep"),
    "5,000 digits": (TEMPLATE % f'\n"a": {NINES}', "not JSON (line 2: a number of thousands of"),
    "an infinite bucket": (
        TEMPLATE % '"zero_optimization": {"stage": 2, "reduce_bucket_size": 1e400}',
        "'zero_optimization.reduce_bucket_size' is inf, no finite number",
    ),
    "a bucket that is no number": (
        TEMPLATE % '"zero_optimization": {"stage": 2, "reduce_bucket_size": NaN}',
        "'zero_optimization.reduce_bucket_size' is nan, no finite number",
    ),
    "a list for a section": (
        TEMPLATE % '"zero_optimization": [2]',
        "'zero_optimization' with 'stage' in it is missing",
    ),
}


@pytest.mark.parametrize(("text", "said"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_template_of_deepspeed_that_is_none_is_refused_by_name(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    train = TrainConfig(
        global_batch_size=2, micro_batch_size=2, precision="fp32", gradient_clipping=1.0
    )
    stage = StageConfig(name="contrastive", epochs=1, learning_rate=1e-3, warmup_epochs=0)
    with pytest.raises(UserError) as error:
        resolve(path, make_plan(4, stage, train, 1), train)
    assert str(error.value).startswith(f"DeepSpeed template {path}: ")
    assert said in str(error.value)


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
