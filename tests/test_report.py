"""The report as a file: whole, self-contained, escaped, the same bytes for the same run."""

import base64
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from crystallized_safety.errors import RunError
from crystallized_safety.records import Summary
from crystallized_safety.report import LabelledCompletion, tables, wording, write_report
from tests.example_summary import SENTENCE, example_summary, rate
from tests.test_figures import NAN, strange_summaries

HOSTILE = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">{{ 7 * 7 }}"
VOID = {"meta", "link", "br", "wbr", "img"}


class Page(HTMLParser):
    """Reads the page as a list of elements, and fails on a tag that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def completion(text: str = "I cannot help.", **changes: str) -> LabelledCompletion:
    values = {
        "prompt_id": "p1",
        "prompt": "How?",
        "condition": "κ −2",
        "label": "refuse",
        "reason": "opener",
        **changes,
    }
    return LabelledCompletion(completion=text, **values)


def written(folder: Path, summary: Summary | None = None, completions: Sequence[LabelledCompletion] = ()) -> str:
    path = folder / "report.html"
    write_report(summary or example_summary(), path, completions)
    return path.read_text(encoding="utf-8")


def test_the_report_says_what_it_must(tmp_path: Path):
    words = Page(written(tmp_path)).words
    for needed in (
        SENTENCE,
        "invented-0.5b-instruct",
        "Layer-dependent",
        "13 completions are unscored",
        "Non-specific",
    ):
        assert needed in words
    for heading in ("Notes", "Warnings", "Evidence", "How to read this", "What was run", "Completions"):
        assert heading in words
    plain = words.replace("\u00a0", " ")
    for needed in (
        "+55.0 pp [+47.4, +61.9]",
        "7.0 % [4.2, 11.4] (14/200)",
        "111 / 1",
        "0.250 (K = 39)",
        "8.8 pp",
        "97.0 pp",
        "+6.0 pp",
    ):
        assert needed in plain
    for needed in (
        "0.960 [0.910, 1.000]",
        "TF-IDF",
        "sha256:a1b2c3",
        "2.13.0",
        "20 min 34 s",
        "1.50 GiB",
        "max_new_tokens",
    ):
        assert needed in plain
    assert "stay on disk" in words


def test_nothing_is_fetched_and_no_script_can_run(tmp_path: Path):
    text = written(tmp_path, completions=[completion(HOSTILE)])
    page = Page(text)
    names = {name for name, _ in page.elements}
    assert not names & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "video",
        "audio",
        "image",
        "foreignobject",
    }
    for name, attributes in page.elements:
        assert "style" not in attributes, name
        assert not [key for key in attributes if key.startswith("on")], name
        for key in ("src", "href", "xlink:href", "srcset", "action"):
            assert str(attributes.get(key, "#")).startswith(("#", "data:,")), (name, attributes)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(page.all("style")) == 1


def test_the_policy_allows_this_style_sheet_and_nothing_else(tmp_path: Path):
    text = written(tmp_path)
    [policy] = [m["content"] for m in Page(text).all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    style = re.search(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert (
        policy == f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def test_every_text_of_the_run_is_escaped(tmp_path: Path):
    full = example_summary()
    verdict = replace(full.verdict, sentence=HOSTILE, readable=HOSTILE, notes=(HOSTILE,))
    run = {**full.run, "model": HOSTILE, "folder": HOSTILE, HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}}
    reading = replace(full.readability, confounds={HOSTILE: 0.5})
    summary = replace(full, verdict=verdict, run=run, readability=reading, warnings=(HOSTILE,))
    everywhere = completion(HOSTILE, **dict.fromkeys(("prompt_id", "prompt", "condition", "label", "reason"), HOSTILE))
    page = Page(written(tmp_path, summary, [everywhere]))
    assert not page.all("script")
    assert not page.all("img")
    assert "{{ 7 * 7 }}" in page.words
    assert page.words.count("<script>") >= 10


def test_completions_are_hidden_grouped_and_complete(tmp_path: Path):
    rows = [completion("first"), completion("second", condition="κ 0"), completion("third")]
    page = Page(written(tmp_path, completions=rows))
    assert all("open" not in details for details in page.all("details"))
    assert "Caution" in page.words
    assert "κ −2 (2)" in page.words
    assert page.words.index("first") < page.words.index("third") < page.words.index("second")


def test_strange_characters_show_instead_of_acting(tmp_path: Path):
    text = written(tmp_path, completions=[completion("a\x00b\x1b[2Jc\ud800d\n\te")])
    assert "a␀b␛[2Jc\\ud800d\n\te" in text


def test_a_huge_run_stays_below_two_megabytes_and_says_what_is_missing(tmp_path: Path):
    rows = [completion("'\"<&é" * 400, condition=str(i)) for i in range(1000)]
    text = written(tmp_path, completions=rows)
    assert 1_500_000 < len(text.encode()) < 2_000_000
    shown = text.count("<article>")
    assert f"Show {shown} completions" in text
    assert f"{1000 - shown} more would make this file larger" in text


def test_a_full_sweep_without_completions_is_small(tmp_path: Path):
    full = example_summary()
    doses = tuple(replace(p, layer=layer) for layer in range(32) for p in full.doses if p.layer == 14)
    assert len(written(tmp_path, replace(full, doses=doses)).encode()) < 1_000_000


@pytest.mark.parametrize("case", strange_summaries())
def test_every_strange_run_gets_a_report(tmp_path: Path, case):
    words = Page(written(tmp_path, strange_summaries()[case])).words
    assert SENTENCE in words
    assert not re.search(r"\bnan\b|\bNone\b|Undefined", words)


def test_a_run_that_says_almost_nothing_gets_a_report(tmp_path: Path):
    assert "unnamed model" in written(tmp_path, replace(example_summary(), run={}, warnings=(), seconds=NAN))


def test_same_input_same_bytes_in_another_process(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from tests.example_summary import example_summary as e\n"
        "from crystallized_safety.report import write_report\n"
        "write_report(e(), Path(sys.argv[1]))\n"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules), 'a heavy import crept in'"
    )
    env = {**os.environ, "PYTHONHASHSEED": "5", "PYTHONPATH": "src:.", "TZ": "Asia/Tokyo"}
    other = tmp_path / "other.html"
    subprocess.run([sys.executable, "-c", code, str(other)], env=env, check=True, cwd=Path(__file__).parents[1])
    assert other.read_text(encoding="utf-8") == written(tmp_path)


def test_a_report_replaces_the_old_one_and_leaves_no_other_file(tmp_path: Path):
    folder = tmp_path / "new" / "run"
    written(folder)
    written(folder)
    assert [p.name for p in folder.iterdir()] == ["report.html"]


def test_a_failed_report_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = written(tmp_path)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(RunError, match="disk full"):
        written(tmp_path, replace(example_summary(), seconds=1.0))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old


def test_it_is_accessible(tmp_path: Path):
    page = Page(written(tmp_path, completions=[completion()]))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    assert len(page.all("figure")) == len(page.all("figcaption")) == len(page.all("svg")) == 4
    assert all(svg["role"] == "img" and len(str(svg["aria-label"])) > 40 for svg in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a} <= set(ids)


def test_the_best_layer_comes_from_the_select_split_not_from_test():
    full = example_summary()
    layers = tuple(
        replace(
            p,
            auroc=0.99 if p.layer == 3 else p.auroc,
            selection_auroc=0.9 if (p.layer, p.position) == (11, -5) else 0.6,
        )
        for p in full.readability.layers
    )
    table = tables.readability(replace(full, readability=replace(full.readability, layers=layers)))
    assert [row[1] for row in table.rows] == ["14", "11"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (wording.points(-0.123), "−12.3 pp"),
        (wording.points(NAN), "—"),
        (wording.rate(rate(0, 10)), "0.0 % [0.0, 27.8] (0/10)"),
        (wording.rate(rate(0, 0, 3)), "— (n = 0; 3 unscored)"),
        (wording.p_value(0.0), "< 0.001"),
        (wording.p_value(None), "—"),
        (wording.duration(3725), "1 h 2 min 5 s"),
        (wording.duration(0.2), "0 s"),
        (wording.megabytes(5 << 20), "5 MiB"),
        (list(wording.settings({"a": {"b": [1, None], "c": []}})), [("a.b", "1, —"), ("a.c", "—")]),
    ],
)
def test_wording(said, expected):
    assert (said.replace("\u00a0", " ") if isinstance(said, str) else said) == expected
