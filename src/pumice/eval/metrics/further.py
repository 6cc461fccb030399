"""Further scores of a task's answers, beside the one that its row leads with. All are shares from 0 to 1.

[(answer, truth)] ──trees | POPE | characters──> {"field F1": ..., "unparsed": ...}
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pumice.eval.metrics import strings
from pumice.eval.metrics.trees import field_f1, read_json, ted_accuracy
from pumice.eval.metrics.yesno import pope_answer, pope_official

Pairs = Sequence[tuple[str, str]]


def tree_accuracy(answer: str, truth: str) -> float:
    """Tree edit distance accuracy of an answer that should be JSON; one without JSON counts as {}."""
    return ted_accuracy(read_json(answer) or {}, json.loads(truth))


def pope_right(answer: str, truth: str) -> bool:
    """Whether POPE's official script takes the answer for the truth (yes | no)."""
    return pope_answer(answer) == truth


def further(tasks: Sequence[str], pairs: Pairs) -> dict[str, float]:
    """What belongs beside the score of a task, or of a group of tasks.

    exact               of charts' values, whose score is relaxed
    field F1, unparsed  of receipt_json; unparsed is the share of answers in which there is no JSON
    F1, yes, unparsed   of presence: POPE's F1, the share of answers that are yes, and of those that say neither
    CER                 of Chinese, over all characters
    """
    if "chart_value" in tasks:
        return {"exact": sum(strings.exact_match(*pair) for pair in pairs) / len(pairs)}
    if set(tasks) == {"receipt_json"}:
        read = [read_json(answer) for answer, _ in pairs]
        wanted = [json.loads(truth) for _, truth in pairs]
        lost = sum(data is None for data in read) / len(pairs)
        return {"field F1": field_f1([data or {} for data in read], wanted), "unparsed": lost}
    if set(tasks) == {"presence"}:
        found = pope_official(pairs)
        return {"F1": found.f1, "yes": found.yes_ratio, "unparsed": found.unparsed / found.n}
    if set(tasks) <= {"chinese_read", "chinese_value"}:
        return {"CER": strings.pooled_error_rate(pairs)}
    return {}
