"""Which language a text is in, and when nobody can tell. All texts are synthetic."""
# ruff: noqa: RUF001 - letters of other alphabets are what this is about

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.languages import _LETTERS, _WORD, LANGUAGES, language_of

TEXTS = {
    "en": [
        "Where is my parcel?",
        "How do I reset my password",
        "The order was shipped on Monday and arrives tomorrow.",
    ],
    "de": [
        "Wo ist mein Paket?",
        "Wie kann ich mein Passwort zurücksetzen?",
        "Die Bestellung wurde am Montag verschickt.",
    ],
    "fr": ["Où est mon colis ?", "Comment puis-je changer mon mot de passe ?", "La commande a été expédiée lundi."],
    "es": [
        "¿Dónde está mi paquete?",
        "Cómo puedo cambiar mi contraseña",
        "El pedido se envió el lunes y llegará mañana.",
    ],
    "it": ["Dove è il mio pacco?", "Come posso cambiare la mia password?"],
    "pt": ["Onde está o meu pacote?", "Como posso mudar a minha senha?", "O pedido foi enviado e não chegou."],
    "nl": ["Waar is mijn pakket?", "Hoe kan ik mijn wachtwoord wijzigen?", "De bestelling is op maandag verzonden."],
    "sv": ["Var är mitt paket?", "Hur kan jag byta mitt lösenord?"],
    "da": [
        "Hvor er min pakke?",
        "Hvordan kan jeg ændre min adgangskode?",
        "Hvor er pakken min? Jeg har ikke fått den.",
    ],
    "pl": ["Gdzie jest moja paczka?", "Jak mogę zmienić hasło?"],
    "cs": ["Kde je můj balík?", "Jak mohu změnit heslo?"],
    "tr": ["Paketim nerede?", "Şifremi nasıl değiştirebilirim?"],
    "id": ["Di mana paket saya?", "Bagaimana saya bisa mengganti kata sandi?"],
    "vi": ["Gói hàng của tôi ở đâu?", "Làm thế nào để đổi mật khẩu?"],
    "ru": ["Где моя посылка?", "Как мне изменить пароль?"],
    "uk": ["Де моя посилка і коли вона прийде?", "Як змінити пароль на сайті?"],
    "el": ["Πού είναι το δέμα μου;"],
    "he": ["איפה החבילה שלי?"],
    "ar": ["أين طردي؟", "كيف يمكنني تغيير كلمة المرور؟"],
    "fa": ["چگونه رمز عبور خود را تغییر دهم؟"],
    "hi": ["मेरा पार्सल कहाँ है?"],
    "th": ["พัสดุของฉันอยู่ที่ไหน"],
    "zh": ["我的包裹在哪里？", "如何重置 password？"],
    "ja": ["私の荷物はどこですか", "パスワードを変更したい", "東京都港区の配送先住所を変更する方法"],
    "ko": ["내 택배는 어디에 있나요?"],
    "other": [
        "Wapi kifurushi changu kilichotumwa Jumatatu kutoka duka lenu kubwa mjini? Nimesubiri siku nyingi sana",
        "Къде се намира пратката?",
    ],
}


@pytest.mark.parametrize(("language", "text"), [(key, text) for key, texts in TEXTS.items() for text in texts])
def test_a_short_question_is_enough(language: str, text: str) -> None:
    assert language_of(text) == language


def test_every_language_has_a_text_here() -> None:
    assert set(TEXTS) == set(LANGUAGES)
    assert len(set(LANGUAGES)) == len(LANGUAGES)


def test_the_places_of_languages_stay() -> None:
    # They are stored as numbers, so that a change here would compare new records with other languages.
    assert " ".join(LANGUAGES) == "en de fr es it pt nl sv da pl cs tr id vi ru uk el he ar fa hi th zh ja ko other"


@pytest.mark.parametrize("text", ["", "   ", "42", "ok", "SKU-1234-X", "🙂🙂", "a", "1.2.3.4", "foo_bar(baz)"])
def test_where_nobody_can_tell_nothing_is_said(text: str) -> None:
    assert language_of(text) is None


def test_english_names_in_another_script_do_not_decide() -> None:
    assert language_of("请帮我重置 Shop Account Manager 的密码，谢谢") == "zh"
    assert language_of("Как мне войти в Account Manager?") == "ru"


def test_a_list_is_no_language() -> None:
    assert language_of('{"city": "Kiel", "carrier": "post", "state": "sent"}') is None


@given(st.text(max_size=300))
def test_any_text_is_a_known_language_or_none(text: str) -> None:
    assert language_of(text) in {None, *LANGUAGES}


def test_only_the_opening_is_read() -> None:
    opening = "Where is my parcel and when does it arrive? " * 20
    assert language_of(opening + "Wo ist mein Paket? " * 100_000) == "en"
    started = time.thread_time()
    language_of("ß" * 10_000_000)
    # Loose on purpose: reading all of it takes seconds.
    assert time.thread_time() - started < 1.0


@given(st.text(st.characters(max_codepoint=127), max_size=200))
def test_words_of_ascii_are_what_the_pattern_finds(text: str) -> None:
    assert text.lower().encode().translate(_LETTERS).decode().split() == _WORD.findall(text.lower())
