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
