"""A run's configuration and thinned records as a reference that comes with the product.

python benchmarks/reference.py --workdir runs/tiny-ko/run --name tiny_ko
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

REFERENCES = Path(__file__).parents[1] / "electra_flax/reports/references"


def window(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last of some records with the mean of each number over all of them."""
    last = records[-1]
    numbers = [name for name, value in last.items() if isinstance(value, float) and name != "time"]
    means = {name: sum(each.get(name, last[name]) for each in records) / len(records) for name in numbers}
    return {**last, **{name: float(f"{mean:.5g}") for name, mean in means.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="a run that is done")
    parser.add_argument("--name", required=True, help="of its preset")
    parser.add_argument("--every", type=int, default=100, help="steps a training record stands for (100)")
    given = parser.parse_args()
    records = [json.loads(line) for line in (given.workdir / "metrics.jsonl").read_text().splitlines()]
    kept, waiting = [], []
    for record in records:
        if record["split"] == "validation":
            kept.append(window([record]))
            continue
        waiting.append(record)
        if record["step"] % given.every == 0:
            kept.append(window(waiting))
            waiting = []
    out = REFERENCES / given.name
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(given.workdir / "config.yaml", out / "config.yaml")
    (out / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    print(f"{out}: {len(kept)} records")


if __name__ == "__main__":
    main()
