"""Every reader of a corpus x every way in which people's files are encoded: one table, each cell an expectation."""

import io
import json
import os
import unicodedata

import pytest

from data_prep.json_readers import WithoutHalves
from data_prep.readers import READERS, Corpus, recognize
from data_prep.reading import ReaderOptions, Utf8Stream
from data_prep.sources import find_sources
from electra_flax.errors import UserError

FIRST, SECOND = "한국은 나라이다.", "서울은 수도이다."


def _wikipedia(texts: list[str]) -> str:
    pages = "".join(f"<page><ns>0</ns><revision><text>{text}</text></revision></page>\n" for text in texts)
    return f"<mediawiki>\n{pages}</mediawiki>\n"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)


# What a file of two documents of a line each looks like in each format, and its name.
FORMATS = {
    "text": ("a.txt", lambda a, b: f"{a}\n\n{b}\n"),
    "lines": ("a.txt", lambda a, b: f"{a}\n{b}\n"),
    "wikitext": ("a.txt", lambda a, b: f" = 하나 = \n{a}\n = 둘 = \n{b}\n"),
    "wikiextractor": ("wiki_00", lambda a, b: "".join(f'<doc id="1" title="t">\nt\n{t}\n</doc>\n' for t in (a, b))),
    "jsonl": ("a.jsonl", lambda a, b: "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in (a, b))),
    "json": ("a.json", lambda a, b: _json([{"text": a}, {"text": b}])),
    "namuwiki": ("a.json", lambda a, b: _json([{"namespace": "0", "title": "t", "text": t} for t in (a, b)])),
    "modu": ("a.json", lambda a, b: _json({"document": [{"id": "1", "paragraph": [{"form": t}]} for t in (a, b)]})),
    "wikipedia": ("a.xml", lambda a, b: _wikipedia([a, b])),
}  # fmt: skip


def _nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


# A trick: (text of a file -> its bytes, --encoding, expected texts or what the one line says).
GOOD = [FIRST, SECOND]
TRICKS = {
    "plain": (lambda text: text.encode(), "utf-8", GOOD),
    "UTF-8 with a mark": (lambda text: text.encode("utf-8-sig"), "utf-8", GOOD),
    "mark and --encoding": (lambda text: text.encode("utf-8-sig"), "cp949", GOOD),
    "UTF-16 with a mark": (lambda text: text.encode("utf-16"), "utf-8", GOOD),
    "UTF-16 said, no order": (lambda text: text.encode("utf-16-le"), "utf-16", GOOD),
    "UTF-16 the other way": (lambda text: text.encode("utf-16-be"), "utf-16", GOOD),
    "UTF-32 said, no order": (lambda text: text.encode("utf-32-be"), "utf-32", GOOD),
    "UTF-8 marked twice": (lambda text: ("\ufeff\ufeff" + text).encode(), "utf-8", GOOD),
    "UTF-16 said": (lambda text: text.encode("utf-16-le"), "utf-16-le", GOOD),
    "UTF-16 not said": (lambda text: text.encode("utf-16-le"), "utf-8", "UTF-16 without a byte order mark needs --enc"),
    "UTF-32 with a mark": (lambda text: text.encode("utf-32"), "utf-8", GOOD),
    "CP949 said": (lambda text: text.encode("cp949"), "cp949", GOOD),
    "CP949 not said": (lambda text: text.encode("cp949"), "utf-8", r"line \d+: byte 0x.. at column \d+ is not UTF-8; "
                       r"it reads as Korean in CP949 \(EUC-KR\): give --encoding cp949"),
    "no encoding at all": (lambda text: text.encode().replace("울".encode(), b"\xff\xc0"), "utf-8",
                           r"line \d+: byte 0xff at column \d+ is not UTF-8; give --encoding NAME"),
    "CRLF": (lambda text: text.replace("\n", "\r\n").encode(), "utf-8", GOOD),
    "CR alone": (lambda text: text.replace("\n", "\r").encode(), "utf-8", GOOD),
    "NUL": (lambda text: text.replace("서울", "서\0울").encode(), "utf-8", r"line \d+: a NUL byte: not a text file"),
    "half a character": (lambda text: text.replace("서울", "서\\ud83d울").encode(), "utf-8",
                         {"json": [FIRST, "서\ufffd울은 수도이다."], "": [FIRST, "서\\ud83d울은 수도이다."]}),
    "NFD": (lambda text: _nfd(text).encode(), "utf-8", [_nfd(FIRST), _nfd(SECOND)]),
}  # fmt: skip
IN_JSON = ("jsonl", "json", "namuwiki", "modu")


def read(path, encoding="utf-8", **options) -> tuple[list[str], Corpus]:
    corpus = Corpus(find_sources([str(path)]), ReaderOptions(encoding=encoding, **options))
    return ["\n".join(document.lines()) for document in corpus.documents() if document.text], corpus


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_reader_takes_every_encoding(name, trick, tmp_path):
    file_name, make = FORMATS[name]
    to_bytes, encoding, expected = TRICKS[trick]
    if isinstance(expected, dict):  # an escape is one in JSON alone
        expected = expected["json" if name in IN_JSON else ""]
    path = tmp_path / file_name
    path.write_bytes(to_bytes(make(FIRST, SECOND)))
    format_ = "lines" if name == "lines" else "auto"
    if isinstance(expected, list):
        assert read(path, encoding, format=format_)[0] == expected
        return
    with pytest.raises(UserError, match=expected) as refused:
        read(path, encoding, format=format_, strict=True)
    assert str(refused.value).startswith(str(path))


def test_the_table_has_every_reader_of_text():
    assert READERS.keys() - FORMATS.keys() == {"file", "object", "parquet"}  # lines of text, one of json; no text


def test_what_xml_declares_is_believed(tmp_path):
    path = tmp_path / "a.xml"
    for declared, used in (("EUC-KR", "cp949"), ("euc-kr", "euc-kr"), ("UTF-8", "utf-8"), ("UTF-16", "utf-16")):
        text = f"<?xml version='1.0' encoding='{declared}'?>\n{_wikipedia([FIRST])}"
        path.write_bytes(text.encode(used))
        assert read(path)[0] == [FIRST]
    path.write_text(f"<?xml version='1.0' encoding='UTF-16'?>\n{_wikipedia([FIRST])}")  # which it is not
    assert read(path)[0] == [FIRST]
    path.write_bytes(b'<?xml version="1.0" encoding="klingon"?><mediawiki></mediawiki>')
    with pytest.raises(UserError, match="declares the unknown encoding klingon"):
        read(path)


@pytest.mark.parametrize("peeks", [False, True])
def test_blocks_may_end_anywhere(tmp_path, peeks):
    """Within a character, a CRLF and a mark; the same as bytes and as text, whether looked at before or not."""
    data = f"{FIRST}\r\n{SECOND}\r\ufeff{FIRST}\n".encode()
    expected = f"{FIRST}\n{SECOND}\n{FIRST}\n"
    path = tmp_path / "a"
    path.write_bytes(data)
    for block_bytes in range(1, 9):
        for read in (lambda stream: stream.read().decode(), lambda stream: "".join(stream.texts())):
            with path.open("rb") as file:
                stream = Utf8Stream(file, path, "utf-8", block_bytes)
                assert not peeks or expected.encode().startswith(stream.head() or b"no character")
                assert read(stream) == expected, block_bytes


def test_a_line_of_a_file_with_cr_is_counted(tmp_path):
    for end in ("\r", "\r\n"):
        for wrong, said in ((b"\xff\xc0", "line 3: byte 0xff at column 2 "), (b"\0", "line 3: a NUL byte")):
            (tmp_path / "a.txt").write_bytes(f"가{end}나{end}다".encode() + wrong)
            with pytest.raises(UserError, match=said):
                read(tmp_path / "a.txt")


def test_halves_of_pairs_are_found_wherever_blocks_end():
    text = r'"\ud83d\ude00 \ud83d \\ud83d \\\ud83d \ude00\ud83d\ude00\"\ud55c\ud83d\uD55C\\\\\ud83d\ude00 \ud83dx"'
    expected = json.loads(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for size in range(1, 40):
        reader = WithoutHalves(io.BytesIO(text.encode()))
        data = b"".join(iter(lambda reader=reader, size=size: reader.read(size), b""))
        assert json.loads(data) == expected, size


def test_a_mark_alone_is_an_empty_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf")
    assert read(tmp_path / "a.txt")[0] == []


# ------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('["문장 하나.", "문장 둘."]', ["문장 하나.", "문장 둘."]),
        ('["문장 하나.", {"text": "문장 둘."}]', ["문장 하나.", "문장 둘."]),
        ('{\n "id": 1,\n "text": "본문."\n}\n', ["본문."]),
        ('{"n": ' + "9" * 5000 + ', "text": "본문."}\n', ["본문."]),
        ('{"text": "가"}\n\n{"text": "나\u2028다\x85라"}\n', ["가", "나\u2028다\x85라"]),
    ],
)
def test_json_as_people_have_it(content, expected, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(content)
    assert read(path)[0] == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"x":' + "[" * 100_000 + "]" * 100_000 + ',"text":"본문."}\n', "line 1: JSON nested too deep"),
        ("[" * 100_000, "broken JSON|nested too deep|expected"),
        ('[{"n": ' + "9" * 5000 + ', "text": 5}]', "a number beyond 64 bits: put it in quotes"),
        ('{\n "data": [{"summary": "가"}]\n}', "no key 'text' there, only data: give --text-key"),
        ('[{"namespace": "0", "text": "가"}, "나"]', 'object 2: expected an article, found "나"'),
        ('{\n "text": "가",\n}', "line 3 column 1: broken JSON"),
        ('[{"text": "가"', "broken JSON before byte"),
        (
            '[{"text": "' + "가" * 20 + '"} 나]',
            "before byte [0-9]+: lexical error: invalid char in json text",
        ),
        ("[1, 2]", "a.json object 1: expected text or an object with the key 'text', found 1: take it out, or give "),
        ('[["가"], ["나"]]', "object 1: expected text or an object with the key .text., found ..가"),
        ('["가", null]', "object 2: expected text or an object .* found null"),
        ('[null, "가"]', "object 1: expected text or an object .* found null"),
        ('["인용"] 이라고 했다.', "broken JSON"),
    ],
)
def test_json_that_cannot_be_read_is_one_line(content, said, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as refused:
        read(path)
    assert "\n" not in str(refused.value)


def test_what_a_modu_file_holds_that_is_no_text_is_counted_and_the_rest_is_read(tmp_path):
    path = tmp_path / "a.json"
    documents = [
        {"id": "1", "paragraph": [{"form": "하나."}, {"form": 5}, {"form": "둘."}]},
        {"id": "2", "paragraph": [{"text": "form이 아니다."}]},
        {"id": "3", "utterance": [{"speaker_id": 1, "form": "셋."}, {"speaker_id": 1, "form": None},
                                  {"speaker_id": 2, "form": "넷."}]},
    ]  # fmt: skip
    path.write_text(_json({"document": documents}))
    found, corpus = read(path)
    assert found == ["하나.\n둘.", "셋.\n넷."]
    assert "1 document left out, the first: document 2: KeyError 'form'" in corpus.malformed[str(path)]
    assert corpus.malformed[str(path)].endswith("; 2 forms left out as no text")
    del documents[1]
    path.write_text(_json({"document": documents}))
    assert read(path)[1].malformed == {str(path): "2 forms left out as no text"}
    with pytest.raises(UserError, match="2 forms left out"):
        read(path, strict=True)


# ---------------------------------------------------------------------------------------------------- files, markup


def test_what_of_a_folder_is_left_out_is_named_and_a_file_counts_once(tmp_path):
    corpus, linked = tmp_path / "corpus", tmp_path / "elsewhere"
    (corpus / "sub").mkdir(parents=True)
    linked.mkdir()
    for path in ("a.txt", "B.TXT", "c.ndjson", "d.csv", "README", "sub/e.JSONL", ".hidden.txt"):
        (corpus / path).write_text(FIRST)
    (linked / "f.txt").write_text(SECOND)
    (corpus / "link").symlink_to(linked)
    (corpus / "again").symlink_to(corpus)
    os.mkfifo(corpus / "g.txt")
    told: list[str] = []
    found = find_sources([str(corpus), str(corpus / "a.txt"), str(corpus / "sub/../a.txt"), str(linked)], told.append)
    names = sorted(os.path.basename(source.path) for source in found)
    assert names == ["B.TXT", "a.txt", "c.ndjson", "e.JSONL", "f.txt"]
    assert len(told) == 1
    assert "skipped 2 files whose names do not look like text: README, d.csv" in told[0]
    with pytest.raises(UserError, match="neither a file nor a folder"):
        find_sources([str(corpus / "g.txt")])


def test_a_name_that_is_not_utf_8_is_shown_escaped(tmp_path):
    path = os.fsencode(tmp_path) + "/뉴스.txt".encode("cp949")
    with open(path, "wb") as file:
        file.write(b"a\xff\n")
    (source,) = find_sources([str(tmp_path)])
    assert source.name.endswith(r"\udcb4\udcba\udcbd\udcba.txt")
    with pytest.raises(UserError) as refused:
        list(Corpus([source]).documents())
    str(refused.value).encode()


def test_wikiextractor_leaves_text_only(tmp_path):
    path = tmp_path / "wiki_00"
    path.write_text(
        '<doc id="1" url="u" title=""Weird Al" Yankovic">\n"Weird Al" Yankovic\n\n가수이다.\n</doc>\n'
        '<doc id="2" url="u" title="R&amp;D">\nR&D\n\n연구이다.\n</doc><doc id="3" title="셋">\n셋\n'
        '가 &lt;br&gt; 나&nbsp;다 <templatestyles src="x"/>라 &lt;기생충&gt; 1 &lt; 2\n</doc>\n'
        '<doc id="4" title="빈">\n빈\n\n</doc>\n'
        '<doc id="5" url="u" title="A -> B">A -> B\n바로 이어진 <b class="x">글</b>\n</doc>\n'
        '<doc id="6" title="여섯">한 줄</doc><doc id="7" title="일곱">일곱</doc>\n'
    )
    expected = ["가수이다.", "연구이다.", "가\n나 다 라 <기생충> 1 < 2", "바로 이어진 글", "한 줄"]
    assert read(path)[0] == expected


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("|| 표 || 칸 ||\n||<-2> 여러 줄\n둘째 줄 || 끝 ||\n본문", "본문"),
        ("|| 닫지 않은 칸\n이어짐\n\n본문", "본문"),
        ("앞[* 각주 [[링크|말]] [br] 줄]뒤", "앞뒤"),
        ("오늘 [date] 이다", "오늘  이다"),
        ("[ruby(漢字, ruby=한자)]를 읽는다", "漢字를 읽는다"),
        ("2019--2020, 2021--2022", "2019--2020, 2021--2022"),
        ("--지운 말-- 남은 말", "지운 말 남은 말"),
        ("[Include(틀:넘겨주기, n1=아)]본문[anchor(가)]", "본문"),
        ("[ruby(가[b]나, ruby=ga[na])]다", "가[b]나다"),
        ("[Ruby(가, 나, color=red, ruby=x)]다", "가, 나다"),
        ("식 [math(a[0] + f(b[c(1)]))]이다[math([0, 1))].", "식 이다."),
        ("앞[* 각주 [math(a[i[0]])] [ruby([漢], ruby=[한])] [br] 끝]뒤", "앞뒤"),
        ("닫지 않은 [* 각주 [math(a", "닫지 않은 [* 각주 [math(a"),
    ],
)
def test_namuwiki_leaves_text_only(markup, text):
    from data_prep.markup import namuwiki_lines

    assert namuwiki_lines(markup) == [text]


def test_formats_are_seen_through_marks():
    assert recognize(b'["a", "b"]', "text") == "json"
    assert recognize(b'["a"] said he', "text") == "text"
    assert recognize(b'{"text": "a"}', "text") == "jsonl"
    assert recognize(b'{\n "text": "a"}', "text") == "object"
    assert recognize(b"[1] note", "text") == recognize(b"[1] note", "text", "notes.txt") == "text"
    assert recognize(b"[1, 2]", "text", "a.JSON.gz") == recognize(b"[[", "text", "gs://b/a.json") == "json"
    assert recognize(b'"a"\n"b"', "text", "a.jsonl") == recognize(b"[1]\n", "text", "a.ndjson.zst") == "jsonl"


@pytest.mark.parametrize(
    "before",
    [
        '<!DOCTYPE mediawiki SYSTEM "m.dtd">', '<?xml version="1.0"?>\n<!-- a > b -->\n<!DOCTYPE mediawiki>\n',
        '<!DOCTYPE mediawiki [\n<!ENTITY a "b">\n] >', "<!-- -->" * 5000,
    ],
)  # fmt: skip
def test_what_xml_may_begin_with(before, tmp_path):
    (tmp_path / "a.xml").write_text(before + _wikipedia([FIRST, SECOND]))
    assert read(tmp_path / "a.xml")[0] == [FIRST, SECOND]
    assert recognize(before.encode() + b"<html>", "text") == "text"
