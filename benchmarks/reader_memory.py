"""Peak memory of every reader on synthetic streams of 1 and 4 GB, through a pipe: nothing is written to the disk.

python benchmarks/reader_memory.py --out runs/bench [--megabytes 1000 4000] [--only jsonl ...]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from data_prep.readers import Corpus
from data_prep.sources import Source, zstd

TEXT = "대한민국의 주권은 국민에게 있고 모든 권력은 국민으로부터 나온다. " * 4
ROW = json.dumps({"namespace": "0", "title": "가", "text": TEXT.replace("주권", "[[주권]]")}, ensure_ascii=False)
DOCUMENT = json.dumps({"id": "1", "paragraph": [{"id": "1", "form": TEXT}] * 3}, ensure_ascii=False)
TALK = json.dumps({"id": "1", "utterance": [{"speaker_id": "a", "form": TEXT}] * 3}, ensure_ascii=False)
PAGE = f"<page><title>가</title><ns>0</ns><revision><text>{TEXT}</text></revision></page>\n"
# (before, repeated, after)
STREAMS = {
    "text": ("", f"{TEXT}\n{TEXT}\n\n", ""),
    "text without a blank line": ("", f"{TEXT}\n", ""),
    "text in one line": ("", f"{TEXT} ", ""),
    "wikitext": ("", f" = 제목 = \n\n {TEXT}\n = = 절 = = \n {TEXT}\n", ""),
    "wikiextractor": ("", f'<doc id="1" url="u" title="가">\n가\n\n{TEXT}\n</doc>\n', ""),
    "jsonl": ("", json.dumps({"text": TEXT}, ensure_ascii=False) + "\n", ""),
    "json": ("[", json.dumps({"text": TEXT}, ensure_ascii=False) + ",", '{"text": "끝"}]'),
    "namuwiki": ("[", ROW + ",", ROW + "]"),
    "modu news": ('{"document": [', DOCUMENT + ",", DOCUMENT + "]}"),
    "modu spoken": ('{"document": [', TALK + ",", TALK + "]}"),
    "wikipedia": ('<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">', PAGE, "</mediawiki>"),
    "text, zstd": ("", f"{TEXT}\n{TEXT}\n\n", ""),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1000, 4000], help="of each stream (1000 4000)")
    parser.add_argument("--only", nargs="+", choices=STREAMS, default=list(STREAMS), help="streams")
    parser.add_argument("--out", type=Path, required=True, help="folder for reader_memory.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker)
    result: dict[str, list[dict]] = {}
    for name in args.only:
        for megabytes in args.megabytes:
            result.setdefault(name, []).append(measure(name, megabytes))
            print(name, json.dumps(result[name][-1]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "reader_memory.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(name: str, megabytes: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream"
        os.mkfifo(path)
        command = [sys.executable, __file__, "--out", ".", "--worker", str(path)]
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        writer = threading.Thread(target=write, args=(path, name, megabytes))
        started = time.perf_counter()
        writer.start()
        output = reader.communicate()[0]
        writer.join()
        return {"megabytes": megabytes, **json.loads(output), "seconds": round(time.perf_counter() - started, 1)}


def write(path: Path, name: str, megabytes: int) -> None:
    packer = zstd.ZstdCompressor(level=1) if name.endswith("zstd") else None
    with path.open("wb") as pipe:
        for block in blocks(name, megabytes):
            pipe.write(packer.compress(block) if packer else block)
        if packer:
            pipe.write(packer.flush())


def blocks(name: str, megabytes: int) -> Iterator[bytes]:
    before, repeated, after = STREAMS[name]
    block = (repeated * (1_000_000 // len(repeated.encode()))).encode()
    yield before.encode()
    for _ in range(megabytes * 1_000_000 // len(block)):
        yield block
    yield after.encode()


def work(path: str) -> int:
    documents = sum(1 for _ in Corpus([Source(path, 0, "")]).documents())
    # Not getrusage: its peak begins with that of the process this one was forked from.
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert peak
    print(json.dumps({"documents": documents, "peak_mib": round(int(peak[1]) / 1024)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
