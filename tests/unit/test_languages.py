"""The prompt names the language of the texts."""

from __future__ import annotations

import pytest

from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_run
from signfuse_dist.languages import fill_prompt


@pytest.mark.parametrize(
    ("language", "english", "own"),
    [
        ("de", "German", "Deutsch"),
        ("zh-Hans", "Chinese", "中文"),
        ("pt_BR", "Portuguese", "português"),
        ("vi", "Vietnamese", "Tiếng Việt"),
        ("DE", "German", "Deutsch"),
        ("yue", "Cantonese", "粵語"),
    ],
)
def test_a_language_has_its_english_name_and_its_own(language: str, english: str, own: str) -> None:
    prompt = "{language}, {own_language}, {language} and {else}"
    assert fill_prompt(prompt, language) == f"{english}, {own}, {english} and {{else}}"


def test_an_unknown_code_is_an_error_that_names_the_key_and_only_where_it_is_needed() -> None:
    assert fill_prompt("Translate:", "xx") == "Translate:"
    with pytest.raises(
        UserError, match=r"data\.language 'xx': its name is not known.*\{language\}"
    ):
        fill_prompt("Translate into {language}:", "xx")
    words = ["data.language=german", "model.prompt='Into {own_language}:'"]
    with pytest.raises(UserError, match=r"data\.language 'german'"):
        load_run("demo", "finetune", words)
    assert load_run("demo", "finetune", [words[0]]).data.language == "german"


def test_each_corpus_of_a_blend_is_asked_in_its_language() -> None:
    """An unknown one is refused with the name of its corpus."""
    prompt, blend = "model.prompt='Into {language}:'", "data.blend=[{corpus: how2sign}, %s]"
    known = [blend % "{corpus: phoenix14t}", prompt]
    run = load_run("how2sign", "finetune", known)
    filled = [fill_prompt(run.model.prompt, part.data.language) for part in run.data.blend]
    assert filled == ["Into English:", "Into German:"]
    with pytest.raises(UserError, match=r"corpus phoenix14t of data\.blend: data\.language 'qq'"):
        load_run(
            "how2sign", "finetune", [blend % "{corpus: phoenix14t, data: {language: qq}}", prompt]
        )
