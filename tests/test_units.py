"""Words in scripts with and without spaces: English is counted as ever, the others by units that fit, in every rule."""

from __future__ import annotations

import random
import re
import time
from itertools import islice
from pathlib import Path

import pytest

from openbezoar.cleaning import units
from openbezoar.cleaning.contamination import Overlap
from openbezoar.cleaning.duplicates import NearDuplicates, shingles
from openbezoar.cleaning.rules import Candidate, RowFilter, echo, repeated_share
from openbezoar.judging.failures import loops
from openbezoar.recipe.data_steps import Rules
from openbezoar.rows.records import read_jsonl
from openbezoar.schemes import elimination
from openbezoar.schemes.work import normal

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
CHINESE = (
    "水循环是指地球上的水通过蒸发、凝结、降水和径流不断运动的过程。太阳的热量使海洋和湖泊中的水变成水汽，"
    "水汽上升后冷却成云。"
)
JAPANESE = (
    "富士山は日本で一番高い山で、静岡県と山梨県にまたがっています。夏になると、"
    "世界中からたくさんの人がこの山に登りに来ます。"
)
THAI = "ประเทศไทยมีอาหารอร่อยมากมาย เช่น ต้มยำกุ้งและผัดไทย คนไทยชอบกินข้าวกับแกงหลายชนิดทุกวัน และมักจะแบ่งกันกินกับครอบครัว"
KHMER = "ប្រទេសកម្ពុជាមានប្រាសាទអង្គរវត្តដែលជាប្រាសាទដ៏ធំបំផុតនៅលើពិភពលោក ហើយមានភ្ញៀវទេសចរជាច្រើនមកទស្សនារៀងរាល់ឆ្នាំ"
MYANMAR = "မြန်မာနိုင်ငံသည်အရှေ့တောင်အာရှတွင်တည်ရှိပြီးလူဦးရေသန်းငါးဆယ်ကျော်ရှိသည်။ရန်ကုန်မြို့သည်အကြီးဆုံးမြို့ဖြစ်သည်။"
LAO = "ປະເທດລາວມີແມ່ນ້ຳຂອງໄຫຼຜ່ານແລະມີພູເຂົາຫຼາຍແຫ່ງທີ່ສວຍງາມສຳລັບນັກທ່ອງທ່ຽວທີ່ມາຈາກທົ່ວໂລກ"
TIBETAN = "བོད་ནི་འཛམ་གླིང་གི་ཡང་རྩེ་ཡིན་པས་གངས་རི་མང་པོ་ཡོད་ཅིང་མི་རྣམས་སེམས་བཟང་པོ་ཡོད།"
UNSPACED = {
    "Chinese": CHINESE,
    "Japanese": JAPANESE,
    "Thai": THAI,
    "Khmer": KHMER,
    "Myanmar": MYANMAR,
    "Lao": LAO,
    "Tibetan": TIBETAN,
}
ENGLISH = [
    "",
    "word",
    "It's a test_case — naïve co-op, 3.5 %.",
    "a b c d " * 9,
    "- one\n- two * three\n\n…",
    "def f(x):\n    return x_y\t# done",
    "İstanbul straße",
    "Привет, мир",
    "한국어는 띄어쓰기가 있다 그래서 단어로 센다",
]


def texts() -> list[str]:
    path = DATA / "dolly.jsonl.gz"
    rows = list(islice(read_jsonl(path), 300)) if path.is_file() else []
    spaced = [
        row[name] for row in rows for name in ("instruction", "response") if not units._UNSPACED.search(row[name])
    ]
    draw = random.Random(3)
    return [
        *ENGLISH,
        *spaced,
        *(
            " ".join(draw.choices(["the", "sea", "Don't", "x_1", "—", "(so", "end."], k=draw.randrange(200)))
            for _ in range(40)
        ),
    ]


def test_spaced_texts_are_counted_cut_and_compared_as_words_are() -> None:
    for text in texts():
        assert units.words(text) == len(text.split()) and units.split(text) == text.split()
        assert units.bare(text) == re.findall(r"[^\W_]+", text.casefold())
        for n in (1, 3, 4, 13):
            parts = text.split()
            assert list(units.grams(parts, n * units.WORD)) == [(i, i + n) for i in range(len(parts) - n + 1)]
        words = re.findall(r"\w+", text.casefold())
        grams = frozenset(" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))
        assert shingles(text) == (grams if words else frozenset(["".join(text.split())]))
        parts = text.casefold().split()
        runs = [tuple(parts[i : i + 4]) for i in range(len(parts) - 3)]
        assert repeated_share(text) == (1 - len(set(runs)) / len(runs) if runs else 0.0)
        assert elimination.words(text) == re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("谢谢", 2),
        ("你好", 2),
        ("好", 1),
        ("早上好", 2),
        ("我喜欢学习编程。", 5),
        ("はい", 1),
        ("ありがとう", 3),
        ("猫が好きです。", 4),
        ("カタカナ", 2),
        ("ｶﾀｶﾅ", 2),
        ("ขอบคุณ", 2),
        ("Python 是语言", 3),
        ("用Python写", 3),
        ("GPT-4很好", 3),
        ("，。！", 1),
        ("「東京」、（大阪）", 3),
        ("１２３個", 2),
        ("안녕하세요 여러분", 2),
        ("नमस्ते दुनिया", 2),
        ("𠮷野家", 2),
        ("「", 1),
        ("", 0),
    ],
)
def test_a_word_is_as_long_as_words_of_its_script_are(text: str, words: int) -> None:
    assert units.words(text) == words


def test_a_letter_keeps_its_marks_and_punctuation_is_no_unit() -> None:
    assert units.bare("ที่นี่") == ["ที่", "นี่"]
    assert units.bare("हिन्दी में, है।") == ["हिन्दी", "में", "है"]  # signs of a spaced script stay in the word
    assert units.bare("今日は、ABC社へ。") == ["今", "日", "は", "abc", "社", "へ"]
    assert units.split("说：「Hello, world」") == ["说", "：「Hello,", "world」"]


@pytest.mark.parametrize("script", list(UNSPACED))
def test_a_good_row_in_a_script_without_spaces_is_kept(script: str) -> None:
    answer = UNSPACED[script]
    assert 8 < units.words(answer) < 90
    translation = Candidate(f"Translate into {script}: a text about the country and its people.", answer)
    assert RowFilter(Rules())(translation) is None
    assert RowFilter(Rules(language="any"))(Candidate(answer[: len(answer) // 2], answer[::-1])) is None
    assert repeated_share(answer) < 0.2 and not loops(answer)


@pytest.mark.parametrize("answer", ["谢谢", "你好", "早上好", "我爱你", "ありがとう", "ขอบคุณ", "猫"])
def test_short_answers_to_translation_tasks(answer: str) -> None:
    drop = RowFilter(Rules())(Candidate("Translate the phrase into the language named.", answer))
    assert (drop.rule if drop else None) == ("response_too_short" if answer == "猫" else None)  # as "Cat." is


@pytest.mark.parametrize("script", list(UNSPACED))
def test_loops_echoes_and_lengths_are_found_in_every_script(script: str) -> None:
    text = UNSPACED[script]
    part = text[:14]
    assert repeated_share(part * 20) > 0.8 and loops(part * 20)
    broken = RowFilter(Rules(language="any"))(Candidate(text, part * 20))
    assert broken is not None and broken.rule == "repetition"
    assert echo(Candidate(text, f"{text}\n{text[::-1]}"), Rules()) and not echo(Candidate(text, text[::-1]), Rules())
    long = "".join(random.Random(1).choices(text, k=9000))
    too_long = RowFilter(Rules(language="any"))(Candidate(text, long))
    assert too_long is not None and too_long.rule == "response_too_long"
    apology = Candidate(text, f"Sorry. {text}{text[::-1]}{text}{text[::-1]}"[:300])
    assert (units.words(apology.response) < 80) == (
        getattr(RowFilter(Rules(language="any"))(apology), "rule", "") == "refusal"
    )


@pytest.mark.parametrize("script", list(UNSPACED))
def test_near_duplicates_are_found_in_every_script(script: str) -> None:
    pytest.importorskip("datasketch")
    text = UNSPACED[script]
    near = NearDuplicates[str](0.7)
    near.add("first", text, "a")
    assert (found := near.find(text[:-3] + "！", "a")) is not None and found[0] == "first"
    assert near.find(text[::-1], "a") is None
    assert len(shingles(text)) > 15


@pytest.mark.parametrize("script", list(UNSPACED))
def test_a_benchmark_s_row_is_found_in_every_script(script: str) -> None:
    text = UNSPACED[script]
    overlap = Overlap(13)
    overlap.add("exam", [{"id": "q1", "question": text}])
    hit = overlap.find(f"请回答：{text}谢谢。", "An answer.")
    assert hit is not None and (hit.benchmark, hit.row) == ("exam", "q1")
    assert hit.words.replace(" ", "") == hit.words or script == "Thai"
    assert overlap.find(text[::-1], "An answer.") is None
    short = Overlap(13)
    short.add("exam", [{"question": "世界上最长的河流是哪一条？"}])  # 12 characters are 8 words
    assert short.find("问题：世界上最长的河流，是哪一条呢") is not None
    assert short.find("世界上最高的山峰是哪一座？") is None


def test_rules_of_schemes_count_so_too() -> None:
    assert not elimination.apologises("Sorry，" + CHINESE * 3) and elimination.apologises("Sorry，" + CHINESE[:20])
    assert not elimination.says_nothing("是的")
    assert normal("今天天气好吗？") == normal("今天天气好吗") and elimination.same_as_source("写一首诗。", "写一首诗")


def test_all_this_takes_linear_time() -> None:
    for text in (CHINESE, "mixed 文字 text，と。", THAI, "a" * 40 + "ก"):
        begun = time.perf_counter()
        long = text * (50_000 // len(text))
        assert units.words(long) and units.bare(long) and 0 <= repeated_share(long) <= 1 and shingles(long)
        assert time.perf_counter() - begun < 20


@pytest.mark.parametrize(
    ("text", "words"),
    [("🎉", 1), ("🎉🎉", 2), ("Well done!🎉", 3), ("👍🏽", 1), ("☀️", 1), ("👨‍👩‍👧", 3), ("→ ∑", 2)],
)
def test_a_pictogram_is_a_word_with_its_colour_and_form(text: str, words: int) -> None:
    assert units.words(text) == words


def test_texts_that_differ_in_their_pictograms_or_signs_only_are_no_near_duplicates() -> None:
    for first, second in (
        ("🎉 🎉 🎉", "🙂 🙂 🙂"),
        ("What does 😀 mean here?", "What does 😡 mean here?"),
        ("+ + +", "- - -"),
    ):
        near: NearDuplicates[str] = NearDuplicates(0.7)
        near.add("first", first, "")
        assert near.find(second, "") is None and near.find(first, "") == ("first", 1.0)


def test_width_and_case_make_no_other_text() -> None:
    screen = RowFilter(Rules(language="any"))
    assert screen(Candidate("What is the capital of France?", "It is Paris.", id="a")) is None
    drop = screen(Candidate("ＷＨＡＴ　ｉｓ　ｔｈｅ　ｃａｐｉｔａｌ　ｏｆ　Ｆｒａｎｃｅ？", "パリです。", id="b"))
    assert drop is not None and drop.rule == "duplicate"
    assert units.bare("ｶﾞｷﾞｸﾞ１２") == units.bare("ガギグ12")


@pytest.mark.parametrize("stretch", ["!", "ha", "a", "🎉", "나는고양이를좋아합니다", "ተክሎች፡በፀሐይ፡ብርሃን፡", "word-", "\n|"])
def test_an_answer_that_goes_round_without_a_blank_is_dropped_as_a_loop(stretch: str) -> None:
    looping = Candidate("Say something nice.", f"Here it is: {stretch * 120}")
    drop = RowFilter(Rules(language="any"))(looping)
    assert drop is not None and drop.rule == "repetition"
    assert RowFilter(Rules(language="any", drop_repetition=1.0))(looping) is None
