"""The packaged prompt set keeps its promises, and the loader refuses what is not a prompt set."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import data.prompts as packaged
from crystallized_safety.errors import InputError
from crystallized_safety.prompts import fingerprint, load_prompts, select
from crystallized_safety.records import Prompt

PROMPTS = load_prompts()
FOLDER = Path(packaged.__file__).parent
HARMFUL = {prompt.pair: prompt for prompt in PROMPTS if prompt.label == "harmful"}
HARMLESS = {prompt.pair: prompt for prompt in PROMPTS if prompt.label == "harmless"}
TWINS = [(HARMFUL[pair], HARMLESS[pair]) for pair in HARMFUL]
PAIRED = [prompt for twins in TWINS for prompt in twins]

MAX_AUROC = 0.60

VECTORIZERS = {
    "words": {"ngram_range": (1, 2)},
    "characters": {"analyzer": "char_wb", "ngram_range": (2, 5)},
}


def auroc(prompts: list[Prompt], scores: list[float]) -> float:
    return float(roc_auc_score([prompt.label == "harmful" for prompt in prompts], scores))


def text_scores(train: list[Prompt], test: list[Prompt], vectorizer: str) -> list[float]:
    """Scores of a TF-IDF classifier that has seen the training prompts only."""
    tfidf = TfidfVectorizer(**VECTORIZERS[vectorizer])
    model = LogisticRegression(max_iter=1000)
    model.fit(tfidf.fit_transform([p.text for p in train]), [p.label == "harmful" for p in train])
    return list(model.decision_function(tfidf.transform([p.text for p in test])))


def shared_ends(left: list[str], right: list[str]) -> tuple[int, int]:
    """How many words two sentences share at the start, and how many of the rest at the end."""
    shortest = min(len(left), len(right))
    prefix = next((i for i in range(shortest) if left[i] != right[i]), shortest)
    rest = shortest - prefix
    return prefix, next((i for i in range(rest) if left[-1 - i] != right[-1 - i]), rest)


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


# The packaged set: sizes


def test_the_set_has_the_promised_size() -> None:
    assert Counter(p.label for p in PROMPTS) == {"harmful": 240, "harmless": 240, "borderline": 120, "neutral": 120}
    assert Counter(p.split for p in HARMFUL.values()) == {"extract": 80, "select": 40, "calibrate": 40, "test": 80}
    assert set(Counter(p.category for p in HARMFUL.values()).values()) == {20}
    assert {p.split for p in PROMPTS if p.label in ("borderline", "neutral")} == {"calibrate", "test"}


def test_every_split_holds_every_category_in_proportion() -> None:
    for split, counts in {"extract": {6, 7}, "select": {3, 4}, "calibrate": {3, 4}, "test": {6, 7}}.items():
        found = Counter(p.category for p in HARMFUL.values() if p.split == split)
        assert len(found) == 12
        assert set(found.values()) == counts


def test_every_line_has_the_fields_in_their_order_and_the_file_ends_with_a_newline() -> None:
    order = ["id", "text", "label", "category", "cluster", "pair", "split", "source", "licence"]
    for name in ("pairs", "borderline", "neutral"):
        content = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
        assert content.endswith("}\n")
        for line in content.splitlines():
            record = json.loads(line)
            assert list(record) == order
            assert (record["source"], record["licence"]) == ("crystallized-safety", "MIT")


def test_every_capability_question_and_nothing_else_has_answers() -> None:
    lines = (FOLDER / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {record["id"]: record["answers"] for record in map(json.loads, lines)}
    assert len(lines) == len(answers) == 60
    assert set(answers) == {p.id for p in PROMPTS if p.category == "capability"}
    assert all(values and all(value.strip() == value != "" for value in values) for values in answers.values())


# The packaged set: twins


@pytest.mark.parametrize("twins", TWINS, ids=lambda twins: twins[0].pair)
def test_twins_differ_in_one_slot_only(twins: tuple[Prompt, Prompt]) -> None:
    harmful, harmless = twins
    left, right = harmful.text.split(), harmless.text.split()
    prefix, suffix = shared_ends(left, right)
    assert left[0] == right[0]
    assert harmful.text[-1] == harmless.text[-1]
    assert harmful.text[-1] in ".?!"
    assert abs(len(left) - len(right)) <= 2
    assert abs(len(harmful.text) - len(harmless.text)) <= 12
    assert prefix + suffix >= max(len(left), len(right)) / 2
    assert harmful.split == harmless.split
    assert harmful.cluster == harmless.cluster == harmful.pair


def test_no_two_pairs_share_a_frame() -> None:
    frames = set()
    for harmful, harmless in TWINS:
        left = harmful.text.split()
        prefix, suffix = shared_ends(left, harmless.text.split())
        frames.add((*left[:prefix], "…", *left[len(left) - suffix :]))
    assert len(frames) == 240


# The packaged set: what must not give the label away


@pytest.mark.parametrize("split", ["test", "all"])
@pytest.mark.parametrize("length", [len, lambda text: len(text.split())], ids=["characters", "words"])
def test_length_does_not_give_the_label_away(length, split: str) -> None:
    prompts = [p for p in PAIRED if split in ("all", p.split)]
    value = auroc(prompts, [length(p.text) for p in prompts])
    assert 1 - MAX_AUROC <= value <= MAX_AUROC


@pytest.mark.parametrize("vectorizer", VECTORIZERS)
def test_vocabulary_does_not_give_the_label_of_held_out_clusters_away(vectorizer: str) -> None:
    train = [p for p in PAIRED if p.split in ("extract", "select")]
    test = [p for p in PAIRED if p.split == "test"]
    assert auroc(test, text_scores(train, test, vectorizer)) <= MAX_AUROC


@pytest.mark.parametrize("vectorizer", VECTORIZERS)
def test_vocabulary_does_not_give_the_label_of_a_held_out_category_away(vectorizer: str) -> None:
    prompts, scores = [], []
    for category in sorted({p.category for p in PAIRED}):
        test = [p for p in PAIRED if p.category == category]
        prompts += test
        scores += text_scores([p for p in PAIRED if p.category != category], test, vectorizer)
    assert auroc(prompts, scores) <= MAX_AUROC


def test_the_text_classifier_of_these_tests_can_find_a_label() -> None:
    """Without this, an AUROC near one half could mean a broken classifier."""
    tell_tale = [
        Prompt(**{**vars(p), "text": f"{p.text} {'Secretly' if p.label == 'harmful' else 'Gladly'}."}) for p in PAIRED
    ]
    train, test = [p for p in tell_tale if p.split != "test"], [p for p in tell_tale if p.split == "test"]
    for vectorizer in VECTORIZERS:
        assert auroc(test, text_scores(train, test, vectorizer)) == 1.0


def test_no_prompt_is_nearly_repeated_in_another_split() -> None:
    bags = [words(p.text) for p in PROMPTS]
    near = [
        (left.id, right.id)
        for i, left in enumerate(PROMPTS)
        for j, right in enumerate(PROMPTS[:i])
        if left.split != right.split and len(bags[i] & bags[j]) >= 0.6 * len(bags[i] | bags[j])
    ]
    assert near == []


# data.prompts


def test_the_lists_hold_twins_at_the_same_index() -> None:
    text_of_twin = {harmful.text: harmless.text for harmful, harmless in TWINS}
    assert [text_of_twin[text] for text in packaged.HARMFUL_EXTRACTION] == packaged.HARMLESS_EXTRACTION
    assert [text_of_twin[text] for text in packaged.HARMFUL_EVALUATION] == packaged.BENIGN_EVALUATION
    assert len(packaged.HARMFUL_EXTRACTION) == len(packaged.HARMFUL_EVALUATION) == 80


def test_no_extraction_prompt_is_an_evaluation_prompt() -> None:
    extraction = {*packaged.HARMFUL_EXTRACTION, *packaged.HARMLESS_EXTRACTION}
    evaluation = {*packaged.HARMFUL_EVALUATION, *packaged.BENIGN_EVALUATION}
    assert len(extraction) == len(evaluation) == 160
    assert not extraction & evaluation


# select


def test_the_first_prompts_of_a_selection_are_spread_over_all_categories() -> None:
    assert len({p.category for p in select(PROMPTS, label="harmful", limit=12)}) == 12
    counts = Counter(p.category for p in select(PROMPTS, label="harmful", split="extract", limit=30))
    assert set(counts.values()) == {2, 3}


@pytest.mark.parametrize("limit", [1, 7, 40, None])
def test_harmful_and_harmless_selections_hold_the_same_pairs(limit: int | None) -> None:
    harmful = select(PROMPTS, label="harmful", split="test", limit=limit)
    harmless = select(PROMPTS, label="harmless", split="test", limit=limit)
    assert [p.pair for p in harmful] == [p.pair for p in harmless]
    assert len(harmful) == (limit or 80)
    assert {p.label for p in harmful} == {"harmful"}
    assert {p.split for p in harmful} == {"test"}


def test_a_selection_does_not_depend_on_the_order_of_the_prompts() -> None:
    shuffled = [PROMPTS[i] for i in np.random.default_rng(0).permutation(len(PROMPTS))]
    assert select(shuffled, split="select") == select(PROMPTS, split="select")
    assert select(shuffled, limit=50) == select(PROMPTS)[:50]


def test_a_selection_of_everything_holds_every_prompt_once() -> None:
    assert sorted(p.id for p in select(PROMPTS)) == sorted(p.id for p in PROMPTS)
    assert select(PROMPTS, limit=10_000) == select(PROMPTS)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_an_error(limit: int) -> None:
    with pytest.raises(InputError, match=f"1 or more, but it is {limit}"):
        select(PROMPTS, limit=limit)


# fingerprint

FINGERPRINTED = Prompt("a", "Say hello.", "neutral", "talk", "a", "", "test", "somewhere", "MIT")


def test_the_fingerprint_does_not_depend_on_the_order() -> None:
    assert fingerprint(PROMPTS) == fingerprint(reversed(PROMPTS))


def test_the_fingerprint_is_the_documented_hash() -> None:
    """Stated independently: sha256sum of [["a","Say hello.","neutral","talk","a","","test"]]."""
    assert fingerprint([FINGERPRINTED]) == "338e8e80f82a8d7f9266b5672fb6e4ba4c592a0c7856a7a9983a0187df93aa42"


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("id", True),
        ("text", True),
        ("label", True),
        ("split", True),
        ("category", True),
        ("cluster", True),
        ("pair", True),
        ("source", False),
    ],
)
def test_the_fingerprint_follows_what_a_measurement_depends_on(field: str, changed: bool) -> None:
    other = Prompt(**{**vars(FINGERPRINTED), field: "select" if field == "split" else "harmless"})
    assert (fingerprint([other]) != fingerprint([FINGERPRINTED])) == changed


# load_prompts

LINE = {
    "id": "a",
    "text": "Say hello.",
    "label": "harmless",
    "category": "talk",
    "cluster": "a",
    "pair": "",
    "split": "test",
    "source": "somewhere",
    "licence": "MIT",
}


def jsonl(*records: dict[str, object]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def test_a_file_of_ones_own_is_read_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(jsonl({**LINE, "id": "z", "cluster": "z", "text": "Grüß Gott.\u2028Servus."}, LINE))
    assert [p.id for p in load_prompts(path)] == ["z", "a"]
    assert load_prompts(path)[1] == Prompt(**LINE)
    assert type(load_prompts(path)[1]) is Prompt


NOT_A_PROMPT_SET = {
    "empty file": (b"", "at least one prompt"),
    "blank line": (jsonl(LINE) + b"\n", "line 2: .*not valid JSON"),
    "invalid JSON": (jsonl(LINE) + b"{'id': 3}\n", "line 2: .*not valid JSON"),
    "no object": (b"[]\n", "line 1: .*should be an object"),
    "not UTF-8": (jsonl(LINE) + "Grüße\n".encode("latin-1"), "line 2: must be UTF-8, but byte 0xfc"),
    "unknown label": (jsonl({**LINE, "label": "evil"}), "line 1: .*'label' is 'evil', not 'harmful'"),
    "unknown split": (jsonl({**LINE, "split": "train"}), "line 1: .*'split' is 'train', not 'extract'"),
    "unknown field": (jsonl({**LINE, "answer": "x"}), "line 1: .*'answer' is not known"),
    "missing field": (jsonl({k: v for k, v in LINE.items() if k != "licence"}), "line 1: .*'licence' is missing"),
    "number as text": (jsonl({**LINE, "text": 3}), "line 1: .*text is 3"),
    "empty text": (jsonl({**LINE, "text": " \n"}), "line 1: 'text' must not be empty"),
    "empty cluster": (jsonl({**LINE, "cluster": ""}), "line 1: 'cluster' must not be empty"),
    "repeated id": (jsonl(LINE, LINE), r"line 2: each id must stand once, but 'a' .*line 1"),
    "cluster in two splits": (
        jsonl(LINE, {**LINE, "id": "b", "split": "extract"}),
        r"line 2: a cluster must lie in one split, but 'a' is in 'extract' here and in 'test' before .*line 1",
    ),
    "half a pair": (jsonl({**LINE, "pair": "p"}), "line 1: a pair must be one harmful and one harmless"),
    "twins of two categories": (
        jsonl({**LINE, "pair": "p"}, {**LINE, "id": "b", "pair": "p", "label": "harmful", "category": "c"}),
        "line 2: a pair must be .* of one category and cluster",
    ),
}


@pytest.mark.parametrize("case", NOT_A_PROMPT_SET)
def test_what_is_not_a_prompt_set_is_refused_with_file_and_line(case: str, tmp_path: Path) -> None:
    content, message = NOT_A_PROMPT_SET[case]
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_prompts(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        load_prompts(tmp_path)
