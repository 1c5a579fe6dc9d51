"""Do the sentences of the book hold on other testbeds? Runs its pages with other seeds and prints what does not.

    python tests/benchmarks/prose.py --seeds 1 2 --store studies-by-seed [PAGE ...]

A page on seed 0 takes as long as in `make book`; DTL_SCALE sets the scale. A sentence that fails here claims too much.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "book"))
import pages

from dtl.book import NOT_SO, PLACE


def failing(page: Path) -> list[str]:
    """The paragraphs and captions of a page's last run that hold a claim which is not so."""
    texts = (text for cell in pages.assemble(page).cells for text in pages.texts(cell))
    return [part.strip() for text in texts for part in text.split("\n\n") if NOT_SO in part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="for instance 04-influence; all pages on the testbed if none is named")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--store", type=Path, default=Path("studies-by-seed"), help="where studies and runs are kept")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "DTL_PROGRESS": "line"}
    claims = failed = 0
    for seed in options.seeds:
        folder = (options.store / str(seed)).resolve()
        os.environ["DTL_STUDIES"] = str(folder)
        pages.KEPT = folder / "pages"
        for page in pages.pages():
            text = page.read_text(encoding="utf8")
            if '"testbed", seed=0' not in text or (options.pages and page.stem not in options.pages):
                continue
            problem = pages.run(page, ('"testbed", seed=0', f'"testbed", seed={seed}'))
            claims += sum(bool(match["condition"]) for match in PLACE.finditer(text))
            wrong = failing(page)
            failed += sum(part.count(NOT_SO) for part in wrong)
            print(f"seed {seed}, {page.stem}: {problem.splitlines()[-1] if problem else 'all claims hold'}", flush=True)
            for part in wrong:
                print(f"    {part}", flush=True)
    print(f"{failed} of {claims} claims failed")


if __name__ == "__main__":
    main()
