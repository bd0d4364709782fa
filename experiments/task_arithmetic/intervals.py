"""The differences that the README of this folder announces, with 95 % bootstrap intervals over test items and seeds.

python experiments/task_arithmetic/intervals.py [OUTPUTS]
"""

import sys
from pathlib import Path

from taskvec.report.intervals import correct_items, paired_difference
from taskvec.report.records import find_results

CLAIMS = {
    "addition": [("merged", "zero_shot"), ("merged", "merged_alpha_1"), ("joint", "individual")],
    "negation": [("negated", "zero_shot"), ("random", "zero_shot")],
    "analogy": [("analogy", "zero_shot"), ("analogy", "auxiliary")],
}


def main() -> None:
    """Print one line per difference, in points of mean accuracy."""
    outputs = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")
    results = find_results([outputs])
    for protocol, pairs in CLAIMS.items():
        runs = [r for r in results if r.config["experiment"] == f"task_arithmetic/{protocol}"]
        for first, second in pairs if runs else ():
            items = [[correct_items(run, outputs, row) for run in runs] for row in (first, second)]
            mean, low, high = (100 * value for value in paired_difference(*items))
            print(f"| {protocol} | {first} - {second} | {len(runs)} | {mean:+.1f} | [{low:+.1f}, {high:+.1f}] |")


if __name__ == "__main__":
    main()
