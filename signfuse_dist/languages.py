"""Names of languages by their codes, for prompts: in English, and as the language calls itself.

The codes are those of ISO 639-1, and of ISO 639-3 for Cantonese, Filipino and the like. Of a tag
such as ``zh-Hans`` or ``pt-BR`` the language alone counts. Imports no torch.
"""

from __future__ import annotations

from signfuse_dist.errors import UserError, suggest

# Code, English name, own name.
_TABLE = """
af Afrikaans Afrikaans
am Amharic አማርኛ
ar Arabic العربية
az Azerbaijani azərbaycanca
be Belarusian беларуская
bg Bulgarian български
bn Bengali বাংলা
bs Bosnian bosanski
ca Catalan català
cs Czech čeština
cy Welsh Cymraeg
da Danish dansk
de German Deutsch
el Greek ελληνικά
en English English
es Spanish español
et Estonian eesti
eu Basque euskara
fa Persian فارسی
fi Finnish suomi
fil Filipino Filipino
fr French français
ga Irish Gaeilge
gl Galician galego
gu Gujarati ગુજરાતી
he Hebrew עברית
hi Hindi हिन्दी
hr Croatian hrvatski
hu Hungarian magyar
hy Armenian հայերեն
id Indonesian Indonesia
is Icelandic íslenska
it Italian italiano
ja Japanese 日本語
ka Georgian ქართული
kk Kazakh қазақ
km Khmer ខ្មែរ
kn Kannada ಕನ್ನಡ
ko Korean 한국어
ky Kyrgyz кыргызча
lb Luxembourgish Lëtzebuergesch
lo Lao ລາວ
lt Lithuanian lietuvių
lv Latvian latviešu
mk Macedonian македонски
ml Malayalam മലയാളം
mn Mongolian монгол
mr Marathi मराठी
ms Malay Melayu
mt Maltese Malti
my Burmese မြန်မာ
nb Norwegian norsk
ne Nepali नेपाली
nl Dutch Nederlands
no Norwegian norsk
pa Punjabi ਪੰਜਾਬੀ
pl Polish polski
ps Pashto پښتو
pt Portuguese português
ro Romanian română
ru Russian русский
rw Kinyarwanda Kinyarwanda
si Sinhala සිංහල
sk Slovak slovenčina
sl Slovenian slovenščina
so Somali Soomaali
sq Albanian shqip
sr Serbian српски
sv Swedish svenska
sw Swahili Kiswahili
ta Tamil தமிழ்
te Telugu తెలుగు
th Thai ไทย
tl Tagalog Tagalog
tr Turkish Türkçe
uk Ukrainian українська
ur Urdu اردو
uz Uzbek o‘zbek
vi Vietnamese Tiếng Việt
yue Cantonese 粵語
zh Chinese 中文
zu Zulu isiZulu
"""
_NAMES = {
    code: (english, own)
    for code, english, own in (line.split(maxsplit=2) for line in _TABLE.strip().splitlines())
}
_PLACES = ("{language}", "{own_language}")


def fill_prompt(prompt: str, language: str) -> str:
    """Return ``model.prompt`` with the name of a language in its places.

    ``{language}`` is its name in English, ``{own_language}`` that in the language itself. Other
    braces stay as they are. Raises UserError for a code that is not known here, where one is
    needed.
    """
    if not any(place in prompt for place in _PLACES):
        return prompt
    code = language.lower().replace("_", "-").partition("-")[0]
    if code not in _NAMES:
        raise UserError(
            f"data.language {language!r}: its name is not known{suggest(code, _NAMES)}, and "
            f"model.prompt asks for it ({' or '.join(p for p in _PLACES if p in prompt)}); write "
            "the name itself into model.prompt"
        )
    for place, name in zip(_PLACES, _NAMES[code], strict=True):
        prompt = prompt.replace(place, name)
    return prompt
