"""The tiny LLM: tokenizer, samples, pre-training and the folder it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.model_factory import small_config
from signfuse_dist.errors import UserError
from signfuse_dist.model.llm import load_language_model
from signfuse_dist.model.text_tokenizer import load_tokenizer
from signfuse_dist.synthetic.language import all_sentences
from signfuse_dist.synthetic.tiny_llm import (
    IGNORED,
    Samples,
    TinyLLM,
    build,
    main,
    mean_loss,
    measure,
    pretrain,
    read_texts,
    train_tokenizer,
    write_tiny_llm,
)

PROMPT = "Say it:"
TEXTS = [sentence.text for sentence in all_sentences()[::97]][:120]
HELD_OUT = [sentence.text for sentence in all_sentences()[5::331]][:20]
SMALL = TinyLLM(
    hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, steps=40, learning_rate=0.01
)
SMALL_T5 = replace(SMALL, encoder_decoder=True)


def _write(out: Path, **changes: object) -> object:
    given: dict[str, object] = {"prompt": PROMPT, "size": SMALL, "minutes": 1.0, **changes}
    return write_tiny_llm(out, TEXTS, HELD_OUT, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("llm") / "tiny"
    _write(out)
    return out


@pytest.fixture
def samples() -> Samples:
    tokenizer = train_tokenizer(TEXTS, PROMPT, SMALL.vocab_size)
    return Samples(TEXTS, PROMPT, tokenizer, context=512, context_words=32, seed=0)


def test_the_folder_loads_with_the_auto_classes(written: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(written)
    model = AutoModelForCausalLM.from_pretrained(written)
    assert model.config.model_type == "llama"
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), SMALL.hidden_size)
    ids = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert len(ids) == 3
    assert None not in ids
    assert (written / "model.safetensors").is_file()


def test_an_encoder_decoder_is_what_the_configuration_of_a_run_loads(tmp_path: Path) -> None:
    _write(tmp_path / "t5", size=replace(SMALL_T5, steps=1))
    config = small_config(llm=str(tmp_path / "t5"), llm_dtype="float32")
    tokenizer = load_tokenizer(config)
    llm = load_language_model(config, tokenizer)
    assert llm.is_encoder_decoder
    assert llm.llm_dim == SMALL_T5.hidden_size
    assert tokenizer.end == AutoTokenizer.from_pretrained(tmp_path / "t5").eos_token_id


def test_the_loss_of_an_encoder_decoder_is_that_of_its_text_after_what_the_encoder_read(
    samples: Samples,
) -> None:
    model = build(SMALL_T5, samples.tokenizer)
    batch = [samples.prompted(text) for text in TEXTS[:3]]
    loss, count = mean_loss(model, batch)
    lengths = [len(samples.encode(text)) + 1 for text in TEXTS[:3]]
    assert count == sum(lengths)
    alone = [
        float(mean_loss(model, [sample])[0]) * n for sample, n in zip(batch, lengths, strict=True)
    ]
    assert float(loss) == pytest.approx(sum(alone) / count, rel=1e-5)
    with_others = mean_loss(model, [samples.alone(text) for text in TEXTS[:3]])[0]
    assert float(loss) != pytest.approx(float(with_others), rel=1e-3), "the encoder is heard"


@pytest.mark.parametrize("text", [TEXTS[0], "Grüße aus Köln", "他今年四岁。", "नमस्ते", "🙂 \x00"])
def test_any_script_survives_the_tokenizer(written: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(written)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)


def test_words_of_the_language_are_one_token_each(samples: Samples) -> None:
    assert len(samples.encode(TEXTS[0])) == len(TEXTS[0].split())


def test_labels_cover_the_text_and_its_end_and_nothing_before(samples: Samples) -> None:
    text = samples.encode(TEXTS[0])
    before = {"alone": 1, "prompted": 1 + len(samples.prompt)}
    for kind, length in before.items():
        ids, labels = getattr(samples, kind)(TEXTS[0])
        assert labels == [IGNORED] * length + [*text, samples.eos]
        assert ids[length:] == labels[length:]
        assert ids[0] == samples.bos


def test_the_words_before_the_prompt_come_from_the_text_itself(samples: Samples) -> None:
    for text in TEXTS[:20]:
        ids, labels = samples.after_words(text)
        words = ids[: labels.count(IGNORED) - len(samples.prompt)]
        assert len(words) <= 32
        known = {token for word in text.split() for token in samples.encode(f" {word}")}
        assert set(words) <= known


def test_a_text_longer_than_the_context_is_cut(samples: Samples) -> None:
    ids, labels = samples.prompted("the red box " * 400)
    assert len(ids) == len(labels) == 512


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bit for bit is promised on one thread: several may sum in another order on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [SMALL, SMALL_T5], ids=["llama", "t5"])
def test_pretraining_lowers_the_loss_and_repeats_itself(
    samples: Samples, size: TinyLLM, one_thread: None
) -> None:
    weights = []
    for _ in range(2):
        samples.random.seed(0)
        model = build(size, samples.tokenizer)
        before = measure(model, samples, HELD_OUT)
        assert pretrain(model, samples, size, minutes=1.0) == size.steps
        assert measure(model, samples, HELD_OUT).alone < 0.7 * before.alone
        weights.append(model.get_input_embeddings().weight.detach().clone())
    assert torch.equal(*weights)


def test_pretraining_ends_when_its_time_is_over(samples: Samples) -> None:
    model = build(SMALL, samples.tokenizer)
    assert pretrain(model, samples, TinyLLM(steps=100_000), minutes=0.01) < 1000


def test_a_complete_folder_is_left_alone(written: Path) -> None:
    before = (written / "model.safetensors").stat().st_mtime_ns
    assert _write(written) is None
    assert (written / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_with_another_llm_or_other_files_is_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"another tiny LLM \(prompt was .*else:'\)"):
        _write(written, prompt="Say something else:")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else than a tiny LLM"):
        _write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_differs_in_another_llms_folder_is_named(written: Path, tmp_path: Path) -> None:
    file = shutil.copytree(written, tmp_path / "llm") / "pretraining.json"
    record = json.loads(file.read_bytes())
    del record["size"]["encoder_decoder"]
    file.write_text(json.dumps(record), "utf-8")
    with pytest.raises(UserError, match=r"\(encoder_decoder was None, is False\)"):
        _write(file.parent)
    file.write_text("{", "utf-8")
    with pytest.raises(UserError, match=r"pretraining\.json cannot be read"):
        _write(file.parent)


def test_only_the_named_split_is_read(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("id\ttext\tsplit\na\tone\ttrain\nb\ttwo\tdev\nc\t \ttrain\n")
    assert read_texts(table, "train") == ["one"]


def test_quotes_are_read_as_the_packer_reads_them(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text('id\ttext\tsplit\na\t"""no"" he said"\ttrain\nb\tan 8" reel\ttrain\n')
    assert read_texts(table, "train") == ['"no" he said', 'an 8" reel']
    table.write_text('id\ttext\tsplit\na\t"open\ttrain\n')
    with pytest.raises(UserError, match="line 2: its quotes are broken"):
        read_texts(table, "train")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "there is no table"),
        (b"id\ttext\na\tone\n", "no column split in its header ['id', 'text']"),
        (b"id\ttext\tsplit\na\tone\ttest\n", "no text in split 'train'; its splits: test"),
        (b"id\ttext\tsplit\na\t\xff\ttrain\n", "line 2: not UTF-8"),
        (b"", "no column text, split in its header"),
        (b"id\ttext\tsplit\na\tone\n", "line 2: 2 columns where the header has 3"),
        (b"id\ttext\tsplit\n", "no text in split 'train'; its splits: no row"),
    ],
)
def test_a_wrong_table_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, named: str
) -> None:
    table = tmp_path / "table.tsv"
    if content is not None:
        table.write_bytes(content)
    assert main(["--text", str(table), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert named in error
    assert not (tmp_path / "out").exists()


def test_texts_of_packed_splits_are_read_from_their_folder(tmp_path: Path) -> None:
    from helpers.little_splits import LENGTHS, write_split

    write_split(tmp_path / "train")
    assert read_texts(tmp_path, "train") == ["ab" * (n + 1) for n in range(len(LENGTHS))]
