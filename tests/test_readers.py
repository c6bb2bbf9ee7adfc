"""Every corpus format, built from its definition, is recognised and read; what is broken is one line with its place."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from data_prep.readers import Corpus
from data_prep.reading import MAX_DOCUMENT_CHARACTERS, Document, ReaderOptions
from data_prep.sources import find_sources, zstd
from electra_flax.errors import UserError

FIRST, SECOND = ["첫 문서의 첫 줄.", "둘째 줄."], ["둘째 문서."]
WIKIPEDIA = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="ko">
  <siteinfo><sitename>위키백과</sitename></siteinfo>
  <page><title>수학</title><ns>0</ns><id>1</id><revision><id>2</id><text bytes="9" xml:space="preserve">{{정보상자|이름=x}}
'''첫''' [[문서 (책)|문서의]] 첫 줄.&lt;ref name="a"&gt;각주&lt;/ref&gt;
== 역사 ==
* 둘째 [[줄]].
[[파일:a.png|섬네일|설명]]
{| class="wikitable"
| 표
|}
[[분류:수학]]</text></revision></page>
  <page><title>산수</title><ns>0</ns><id>3</id><redirect title="수학" /><revision><text>#넘겨주기 [[수학]]</text></revision></page>
  <page><title>토론:수학</title><ns>1</ns><id>4</id><revision><text>토론</text></revision></page>
  <page><title>둘</title><ns>0</ns><id>5</id><revision><text>둘째 문서.</text></revision></page>
</mediawiki>
"""
NAMUWIKI = [
    {"namespace": "0", "title": "하나", "text": "[[분류:책]]\n== 개요 ==\n'''첫''' [[문서|문서의]] 첫 줄.[* 각주]\n * 둘째 [[줄]].\n||<tablealign=right> 표 ||\n[목차]", "contributors": []},
    {"namespace": "0", "title": "넘김", "text": "#redirect 하나", "contributors": []},
    {"namespace": "1", "title": "틀:가", "text": "틀", "contributors": []},
    {"namespace": "0", "title": "둘", "text": "{{{+1 둘째}}} 문서.", "contributors": []},
]  # fmt: skip


def modu(key, *documents):
    return json.dumps({"id": "NWRW", "metadata": {}, "document": [{"id": str(i), "metadata": {}, key: parts} for i, parts in enumerate(documents)]}, ensure_ascii=False)  # fmt: skip


def turn(speaker, form):
    return {"speaker_id": speaker, "form": form, "original_form": "(" + form + ")", "time": "1"}


PARAGRAPHS = modu("paragraph", [{"id": "1", "form": line} for line in FIRST], [{"id": "2", "form": SECOND[0]}])
CONTENTS = {
    "text": "\n".join(FIRST) + "\n\n\n" + SECOND[0] + "\n",
    "wikitext": f" = 하나 = \n\n {FIRST[0]} \n = = 절 = = \n {FIRST[1]} \n\n = 둘 = \n\n {SECOND[0]} \n",
    "wikiextractor": f'<doc id="1" url="u" title="하나">\n하나\n\n{FIRST[0]}\n{FIRST[1]}\n</doc>\n<doc id="2" url="u" title="둘">\n둘\n\n{SECOND[0]}\n</doc>\n',
    "jsonl": "".join(json.dumps({"id": 1, "url": "u", "text": "\n".join(lines)}) + "\n" for lines in (FIRST, SECOND)),
    "json": json.dumps([{"title": "하나", "text": "\n".join(FIRST)}, {"title": "둘", "text": SECOND[0]}]),
    "wikipedia": WIKIPEDIA,
    "namuwiki": json.dumps(NAMUWIKI, ensure_ascii=False),
    "modu news": PARAGRAPHS,
    "modu pretty": json.dumps(json.loads(PARAGRAPHS), indent=2, ensure_ascii=False),
    "modu spoken": modu("utterance", [turn("가", "첫 문서의"), turn("가", "첫 줄."), turn("나", "둘째 줄.")], [turn("가", SECOND[0])]),
    "modu entities": modu("sentence", [{"id": "1", "form": line, "NE": []} for line in FIRST], [{"id": "2", "form": SECOND[0], "NE": []}]),
}  # fmt: skip
PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}


def read(*paths, **options):
    corpus = Corpus(find_sources([str(path) for path in paths]), ReaderOptions(**options))
    return [document.lines() for document in corpus.documents()]


@pytest.mark.parametrize(
    ("markup", "lines"),
    [
        (
            "'''수학'''(數學, {{llang|en|mathematics}})은 {{출처}}수를 다룬다.",
            ["수학(數學, mathematics)은 수를 다룬다."],
        ),
        ("''서울''({{IPA|a}}, {{소리}})은 도시다.<!-- 주석 -->", ["서울은 도시다."]),
        ("[[파일:a.jpg|섬네일|[[한강]] 사진]]강이다.<br />둘째&nbsp;줄", ["강이다.", "둘째\xa0줄"]),
        ("# 하나\n#* [http://a.b 둘]\n:: 셋\n----\n[[분류:강]][[en:River]]", ["하나", "둘", "셋"]),
        ('{| class="a"\n! 머리\n|-\n| 칸 || 칸\n|}\n끝<ref>각주 {{틀}}</ref>이다.', ["끝이다."]),
        ("가&#xD800;나&#44032;", ["가\ufffd나가"]),
        ("{{정보상자\n| 이름 = {{llang|ko|가}}\n}}\n본문 [[가|나]] <math>x^2</math>.", ["본문 나 ."]),
    ],
)
def test_wikipedia_markup(markup, lines):
    assert Document(0, markup, "wikipedia").lines() == lines


@pytest.mark.parametrize(
    ("markup", "lines"),
    [
        ("'''굵게''' ~~취소~~ __밑줄__ ^^위^^", ["굵게 취소 밑줄 위"]),
        ("{{{#!folding [ 펼치기 ]\n숨은 글\n}}}", ["숨은 글"]),
        ("{{{#red,#blue 빨강}}} {{{+2 크게}}}", ["빨강 크게"]),
        ("> 인용\n * 목록\n  1. 차례\n || 표 || 표 ||\n---- \n## 주석", ["인용", "목록", "차례"]),
        (
            "[[문서#s-1.2]] [[문서|보임]] [[파일:a.png|width=10]] [include(틀:가, 나=다)] [youtube(x)]글",
            ["문서 보임   글"],
        ),
        ("== 제목 ==\n본문[* 각주 [[링크]] 끝].\n[목차]", ["본문."]),
    ],
)
def test_namuwiki_markup(markup, lines):
    assert Document(0, markup, "namuwiki").lines() == lines


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("suffix", PACKERS)
def test_every_format_is_recognised_in_every_packing(name, suffix, tmp_path):
    path = tmp_path / ("corpus.txt" + suffix)
    path.write_bytes(PACKERS[suffix](CONTENTS[name].encode()))
    assert read(path) == [FIRST, SECOND]


def test_parquet(tmp_path):
    table = pyarrow.table({"body": ["\n".join(FIRST), SECOND[0], None], "n": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", text_key="body") == [FIRST, SECOND]


def test_forced_formats_and_encoding(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(CONTENTS["text"], encoding="cp949")
    assert read(path, format="lines", encoding="cp949") == [[FIRST[0]], [FIRST[1]], SECOND]
    assert read(path, format="file", encoding="cp949") == [FIRST + SECOND]


def test_folder_glob_and_order(tmp_path):
    for name in ("b.txt", "a/z.jsonl", "a/wiki_00", "ignored.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"text": name}) if name.endswith("jsonl") else name)
    assert read(tmp_path) == [["a/wiki_00"], ["a/z.jsonl"], ["b.txt"]]
    assert read(f"{tmp_path}/**/*.jsonl") == [["a/z.jsonl"]]


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud800 하나 \\ud83d\\ude00"}\n')
    assert read(path) == [["\ufffd 하나 😀"]]


def test_a_wikipedia_page_nested_too_deep_is_left_out_by_its_title(tmp_path):
    page = "<page><title>{}</title><ns>0</ns><revision><text>{}</text></revision></page>"
    deep, open_ones = "{{{" * 20_000 + "}}}" * 20_000, "{{" * 300 + "}}" * 100
    pages = [page.format("가", "하나."), page.format("나", deep), page.format("다", f"{open_ones} 둘.")]
    (tmp_path / "a.xml").write_text(f"<mediawiki>{''.join(pages)}</mediawiki>")
    corpus = Corpus(find_sources([str(tmp_path)]))
    assert [document.lines()[0][-2:] for document in corpus.documents()] == ["나.", "둘."]
    (problem,) = corpus.malformed.values()
    assert problem == "1 page left out, whose templates are nested too deep, the first: 나"


def test_malformed_modu_is_counted_and_the_rest_read(tmp_path):
    (tmp_path / "a.json").write_text(PARAGRAPHS[:-60])
    (tmp_path / "b.json").write_text(modu("utterance", [turn("가", "말.")], [{"speaker_id": "가"}]))
    (tmp_path / "c.json").write_text(PARAGRAPHS)
    corpus = Corpus(find_sources([str(tmp_path)]))
    documents = [document.lines() for document in corpus.documents()]
    assert documents == [FIRST, ["말."], FIRST, SECOND]
    assert [path[-6:] for path in corpus.malformed] == ["a.json", "b.json"]
    with pytest.raises(UserError, match="a.json: not a Modu corpus file: broken JSON before byte"):
        read(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("a.txt", "가\n나다\n".encode("cp949"), {}, r"line 1: byte 0xb0 at column 1 is not UTF-8; it reads as Korean in CP949 \(EUC-KR\): give --encoding cp949"),
        ("a.txt", "日本の首都は東京です\n".encode("euc-jp"), {}, r"byte 0xc6 at column 1 is not UTF-8; give --encoding NAME"),
        ("a.txt", "와 ㅠㅠ α선\n".encode("cp949"), {}, r"it reads as Korean in CP949"),
        ("a.txt", b"PK\x03\x04\x14\0\0\0", {}, "a zip archive; expected a text file: unpack it and give its files"),
        ("a.txt.xz", lzma.compress(b"text\n")[:4], {}, "cannot be read at byte 4 of 4: truncated: cut off within its first"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', {}, "line 2 column 9: broken JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', {}, "line 2: no key 'text' there, only body: give --text-key NAME"),
        ("a.jsonl", b'{"text": ["a"]}\n', {}, "line 1: 'text' is not text but"),
        ("a.jsonl", b'{"text": ""}\n{"text": " "}\n', {}, "'text' is empty in all 2 rows"),
        ("a.json", b'[{"text": "a"}, {"text": "b"}, {"te', {}, "broken JSON before byte 35"),
        ("a.json", b'[{"text": "a"}, {"text": oops}]', {}, "broken JSON before byte"),
        ("a.xml", WIKIPEDIA.encode()[:-30], {}, r"line \d+ column \d+: broken XML"),
        ("a.txt.bz2", bz2.compress(b"text\n" * 10_000)[:-9], {}, r"cannot be read at byte 45 of 45: truncated"),
        ("a.txt.gz", gzip.compress(b"text\n" * 10_000)[:-9], {}, r"cannot be read at byte \d+ of \d+: truncated"),
        ("a.txt.xz", lzma.compress(b"text\n" * 10_000)[:-9], {}, r"cannot be read at byte \d+ of \d+: truncated"),
        ("a.txt.zst", zstd.compress(b"text\n" * 10_000)[:-9], {}, r"cannot be read at byte \d+ of \d+: truncated"),
        ("a.parquet", b"PAR1garbagePAR1", {}, "not a readable Parquet file"),
        ("a.txt", b'<doc id="1" title="a">\nab\n', {}, "ends inside a <doc>: truncated"),
    ],
)  # fmt: skip
def test_broken_files_are_named_with_the_place(tmp_path, name, content, options, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        read(tmp_path / name, **options)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_empty_column_and_wrong_column_of_parquet(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["", None]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="'text' is empty in all 2 rows"):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'body' there, only text"):
        read(tmp_path / "a.parquet", text_key="body")


def test_a_path_that_does_not_exist_among_many(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"--corpus .*absent.txt: no such file or folder"):
        find_sources([str(tmp_path / "a.txt"), str(tmp_path / "absent.txt")])


def test_endless_lines_and_documents_are_cut(tmp_path):
    words = "가나다 " * 1_000_000
    for name, text in (("line.txt", words), ("document.txt", words.replace(" ", "\n")), ("word.txt", "가" * 3_000_000)):
        (tmp_path / name).write_text(text)
        documents = read(tmp_path / name)
        assert max(sum(map(len, lines)) for lines in documents) <= 1.1 * MAX_DOCUMENT_CHARACTERS
        assert "".join("".join(lines).replace(" ", "") for lines in documents) == text.replace(" ", "").replace(
            "\n", ""
        )


STREAMS = {
    "text": ("가나다라 마바사 아자차카 타파하.\n", "", ""),
    "jsonl": ('{"text": "가나다라 마바사 아자차카 타파하."}\n', "", ""),
    "namuwiki": ('{"namespace": "0", "title": "가", "text": "가나다라 마바사 [[아자차카]] 타파하."},', "[", '{"namespace": "1", "title": "", "text": "a"}]'),
    "wikipedia": ("<page><title>가</title><ns>0</ns><revision><text>가나다라 마바사 [[아자차카]] 타파하.</text></revision></page>", '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">', "</mediawiki>"),
    "modu": ('{"id": "1", "paragraph": [{"id": "1", "form": "가나다라 마바사 아자차카 타파하."}]},', '{"document": [', '{"id": "2", "paragraph": []}]}'),
}  # fmt: skip


def peak_mebibytes(path):
    """Of a process that reads the path. Not getrusage: its peak begins with that of the process it was forked from."""
    code = (
        "import re, sys; from data_prep.readers import Corpus; from data_prep.sources import find_sources\n"
        "assert sum(1 for _ in Corpus(find_sources([sys.argv[1]])).documents())\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    output = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
    return int(output) / 1024


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="NOT CHECKED: peak memory is read as Linux tells it")


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize("name", STREAMS)
def test_streams_are_read_in_constant_memory(name, tmp_path):
    """A file of 8 MB and one of 48 MB: the peak grows by less than a quarter of what is read more."""
    part, before, after = STREAMS[name]
    peaks = []
    for megabytes in (8, 48):
        path = tmp_path / f"{megabytes}.txt"
        block = (part * 20_000).encode()
        with path.open("wb") as file:
            file.write(before.encode())
            for _ in range(megabytes * 1_000_000 // len(block)):
                file.write(block)
            file.write(after.encode())
        peaks.append(peak_mebibytes(path))
    assert peaks[1] - peaks[0] < 10, peaks


@pytest.mark.slow
@on_linux
def test_a_large_row_group_of_parquet_is_not_held(tmp_path):
    """120 MB of text in one row group."""
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(0xAC00, 0xD7A0, 200))) for _ in range(200_000)]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False)
    assert parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups == 1
    peak = peak_mebibytes(tmp_path / "a.parquet")
    assert peak < 170, peak  # 65 of them for pyarrow


def test_gs_paths(google_storage, monkeypatch):
    for name, value in google_storage.items():
        monkeypatch.setenv(name, value)
    import gcsfs

    storage = gcsfs.GCSFileSystem()
    for name, text in (("a/1.txt", CONTENTS["text"]), ("a/2.jsonl", CONTENTS["jsonl"]), ("a/3.csv", "no")):
        with storage.open(f"gs://bucket/{name}", "wb") as file:
            file.write(text.encode())
    storage.invalidate_cache()
    told: list[str] = []
    assert len(find_sources(["gs://bucket/a", "gs://bucket/a/1.txt"], told.append)) == 2
    assert [line.partition(";")[0] for line in told] == [
        "--corpus gs://bucket/a: skipped 1 file whose names do not look like text: bucket/a/3.csv"
    ]
    assert read("gs://bucket/a") == [FIRST, SECOND] * 2
    assert read("gs://bucket/a/*.jsonl") == [FIRST, SECOND]
    assert read("gs://bucket/a/1.txt") == [FIRST, SECOND]
    with pytest.raises(UserError, match=r"--corpus gs://bucket/b: no corpus files there"):
        find_sources(["gs://bucket/b"])
