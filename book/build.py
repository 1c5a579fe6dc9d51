"""Build the book: execute the pages that lack a good run, then write the site from scratch.

    python book/build.py [PAGE ...]      # for instance 04-influence 05-removal; all that lack one if none is named

A page that fails does not keep others from running, nor the site from being written: it shows its error, and the exit
status is 1. Runs are kept in _build/pages and studies in _build/studies, so that the next build goes on from there.
Where CI is set, pages run on the wheel, as those of a reader do.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time

import pages
from sync_notebooks import sync
from vendor import vendor

BUILD = pages.ROOT / "_build"
STUDIES = BUILD / "studies"


def execute(names: list[str]) -> dict[str, str]:
    """Execute the pages that lack a good run; returns name -> what went wrong, "" for those that ran."""
    key, key_file = pages.studies_key(), STUDIES / "key"
    if not key_file.is_file() or key_file.read_text() != key:
        shutil.rmtree(STUDIES, ignore_errors=True)
        STUDIES.mkdir(parents=True)
        key_file.write_text(key)
    known = {page.stem: page for page in pages.pages()}
    if unknown := set(names) - set(known):
        sys.exit(f"No page {', '.join(sorted(unknown))}: choose from {', '.join(known)}.")
    todo = [name for name in known if name in (names or known) and not pages.finished(known[name])]
    alone = [name for name in todo if "perf_counter" in known[name].read_text("utf8")]  # what they measure is time
    problems = dict.fromkeys(todo, "")
    for group in ([name for name in todo if name not in alone], *([name] for name in alone)):
        problems |= asyncio.run(side_by_side({name: known[name] for name in group}))
    return problems


async def side_by_side(todo: dict[str, pages.Path]) -> dict[str, str]:
    """Execute pages, four at a time: while some start or draw others train. The first that opens a study trains it."""
    free, done, problems = asyncio.Semaphore(4), {name: asyncio.Event() for name in todo}, {}
    trains: dict[str, str] = {}

    async def one(name: str, page: pages.Path) -> None:
        studies = re.findall(r'scale\.store\("(.+?)"', page.read_text("utf8"))
        for trainer in {trains.setdefault(study, name) for study in studies} - {name}:
            await done[trainer].wait()
        async with free:
            start = time.perf_counter()
            try:
                problems[name] = await pages.execute(page)
            except Exception as error:  # whatever it is, the other pages go on
                problems[name] = f"{type(error).__name__}: {error}"
        done[name].set()
        how = "failed after" if problems[name] else "done in"
        print(f"   {name} {how} {time.perf_counter() - start:.0f} s", flush=True)
        if problems[name]:
            print(problems[name], file=sys.stderr)

    async with asyncio.TaskGroup() as group:
        for name, page in todo.items():
            group.create_task(one(name, page))
    return problems


def wheel() -> pages.Path:
    """The package as its wheel brings it, unpacked."""
    folder, left = BUILD / "wheel", pages.ROOT / "build"  # what setuptools leaves, and would pack the next time
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(left, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", str(pages.ROOT)]
    subprocess.run(command, check=True)
    shutil.rmtree(left, ignore_errors=True)
    shutil.unpack_archive(next(folder.glob("*.whl")), folder, "zip")
    return folder


def write_site() -> int:
    """Write _build/html from scratch: pages that are gone, old scripts and stale references must not survive."""
    for folder in ("html", ".doctrees", "jupyter_execute"):
        shutil.rmtree(BUILD / folder, ignore_errors=True)
    command = [str(pages.Path(sys.executable).parent / "jupyter-book"), "build", str(pages.ROOT)]
    command += ["-W", "-n", "--keep-going", "-q"]
    return subprocess.run(command, cwd=pages.ROOT, stdout=subprocess.DEVNULL).returncode


def main(names: list[str]) -> int:
    # Kernels inherit these: studies that live as long as the outputs, one thread per worker of dtl, one line per
    # progress bar, no debugger notice.
    os.environ |= {"DTL_STUDIES": str(STUDIES), "OMP_NUM_THREADS": "1", "DTL_PROGRESS": "line"}
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"

    start = time.perf_counter()
    print("Fetching scripts and fonts, writing notebooks ...", flush=True)
    vendor()
    sync()
    if os.environ.get("CI"):
        os.environ["PYTHONPATH"] = str(wheel())
    fetched = time.perf_counter()
    print("Executing the pages that changed ...", flush=True)
    problems = execute(names)
    ran = time.perf_counter()
    print("Writing the site ...", flush=True)
    status = write_site()
    written = time.perf_counter()
    print(f"fetched in {fetched - start:.0f} s, site written in {written - ran:.0f} s,", end=" ")
    print(f"executed {len(problems)} of {len(pages.pages())} pages in {ran - fetched:.0f} s")
    print(f"Open {(BUILD / 'html/index.html').relative_to(pages.ROOT)}")
    if failed := [name for name, problem in problems.items() if problem]:
        print(f"Failed, and shown with the error: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or status else 0


if __name__ == "__main__":
    sys.exit(main([name for argument in sys.argv[1:] for name in argument.replace(",", " ").split()]))
