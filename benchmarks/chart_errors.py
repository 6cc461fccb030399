"""What is wrong with answers about charts: by whether their values are printed, and which bar was named.

    pumice eval pocket -n 200 --tasks charts --json charts.json
    python -m benchmarks.chart_errors charts.json

A chart is drawn again from its name, so that its labels are known. A named bar is the label that is most like the
answer, however that is spelt (at least 0.55 by difflib's ratio); chance names each of a chart's labels equally often.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pumice.data.render import charts

LIKE = 0.55


def table(items: list[dict[str, Any]]) -> list[str]:
    """Markdown: a row a task and sort of chart."""
    groups: dict[tuple[str, str], list[tuple[float, bool, float]]] = defaultdict(list)
    for said in items:
        item, answer = said["item"], said["answer"].strip()
        chart, _ = charts.describe(random.Random(f"eval-{item['picture']}"), "heldout")
        labels = chart.numbers.labels
        named = get_close_matches(answer, labels, 1, LIKE) == [item["truth"]]
        shown = "printed" if chart.labels else "not printed"
        groups[item["task"], shown].append((said["score"], named, 1 / len(labels)))
    rows = ["| task | values | n | right % | the right bar, however spelt % | chance % |", "|---|---|---|---|---|---|"]
    for (task, shown), found in sorted(groups.items()):
        right, named, chance = (100 * sum(column) / len(found) for column in zip(*found, strict=True))
        bars = f"{named:.1f} | {chance:.1f}" if task == "chart_extreme" else " | "
        rows.append(f"| {task} | {shown} | {len(found)} | {right:.1f} | {bars} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="what pumice eval --json wrote, with the charts' tasks in it")
    items = json.loads(parser.parse_args().report.read_text(encoding="utf-8"))["items"]
    print("\n".join(table([said for said in items if said["item"]["task"].startswith("chart_")])))


if __name__ == "__main__":
    main()
