"""Build the book: execute every page that changed, then write the site from scratch.

    python book/build.py

Any warning and any failed cell fails the build. Outputs are reused while nothing they depend on changed: a chapter's
cells (jupyter-cache compares them), the package, the shipped results, the pinned versions and DTL_SCALE.
"""

import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from jupyter_cache import get_cache
from jupyter_cache.executors.basic import ExecutionWorkerLocalMProc, ProcessData
from sync_notebooks import sync
from vendor import vendor

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
CACHE = BUILD / ".jupyter_cache"
STUDIES = BUILD / "studies"
PAGES = sorted(
    page for page in [*ROOT.glob("chapters/*.md"), *ROOT.glob("book/*.md")] if "{code-cell}" in page.read_text("utf8")
)
READER = {"name": "myst_nb_md", "type": "plugin"}


def dependencies_key() -> str:
    """Hash of what chapters depend on besides their own cells."""
    key = hashlib.sha256(f"{sys.version} {os.environ.get('DTL_SCALE', '')}".encode())
    files = [
        *ROOT.glob("dtl/**/*.py"),
        *ROOT.glob("dtl/*.json"),
        *ROOT.glob("book/results/**/*"),
        ROOT / "constraints.txt",
    ]
    for file in sorted(file for file in files if file.is_file()):
        key.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return key.hexdigest()


def execute() -> int:
    """Execute the pages whose outputs are not in the cache. Returns how many there were."""
    key, key_file = dependencies_key(), CACHE / "dependencies"
    if not key_file.is_file() or key_file.read_text() != key:
        shutil.rmtree(CACHE, ignore_errors=True)
        shutil.rmtree(STUDIES, ignore_errors=True)
    cache = get_cache(CACHE)
    key_file.parent.mkdir(parents=True, exist_ok=True)
    key_file.write_text(key)
    for page in PAGES:
        cache.add_nb_to_project(str(page), read_data=READER)
    timeout = yaml.safe_load((ROOT / "_config.yml").read_text())["execute"]["timeout"]
    todo: list[Any] = [record for record in cache.list_unexecuted() if str(record.uri) in map(str, PAGES)]
    if not todo:
        return 0
    failed = []
    todo.sort(key=lambda record: PAGES.index(Path(record.uri)))
    # One page at a time: each trains on all cores, and a later page opens the studies of an earlier one.
    with multiprocessing.get_context("spawn").Pool(1, quiet_kernels) as pool:
        work = [ProcessData(record.pk, record.uri, cache, timeout, False) for record in todo]
        for code, uri in pool.imap(ExecutionWorkerLocalMProc(), work, chunksize=1):
            name = Path(uri).name
            if code:
                failed.append(name)
                print(cache.get_project_record(uri).traceback or f"{name} could not be executed.", file=sys.stderr)
            else:
                record = cache.get_cached_project_nb(uri)
                print(f"   {name} in {record.data['execution_seconds'] if record else 0:.0f} s", flush=True)
    if failed:
        sys.exit(f"Failed: {', '.join(sorted(failed))}")
    return len(todo)


def quiet_kernels() -> None:
    """Send what kernels say on the console (each warns about its transport) to a log file."""
    log = os.open(BUILD / "kernels.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)


def write_site() -> None:
    """Write _build/html from scratch: pages that are gone, old scripts and stale references must not survive."""
    for folder in ("html", ".doctrees", "jupyter_execute"):
        shutil.rmtree(BUILD / folder, ignore_errors=True)
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", str(ROOT), "-W", "-n", "--keep-going", "-q"]
    if returncode := subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        sys.exit(returncode)


def main() -> None:
    # Kernels inherit these: studies that live as long as the outputs, one thread per worker of dtl, one line per
    # progress bar, no debugger notice.
    os.environ |= {"DTL_STUDIES": str(STUDIES), "OMP_NUM_THREADS": "1", "DTL_PROGRESS": "line"}
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"

    start = time.perf_counter()
    print("Fetching scripts and fonts, writing notebooks ...", flush=True)
    vendor()
    sync()
    fetched = time.perf_counter()
    print("Executing the pages that changed ...", flush=True)
    executed = execute()
    ran = time.perf_counter()
    print("Writing the site ...", flush=True)
    write_site()
    written = time.perf_counter()
    print(f"fetched in {fetched - start:.0f} s, site written in {written - ran:.0f} s,", end=" ")
    print(f"executed {executed} of {len(PAGES)} pages in {ran - fetched:.0f} s")
    print(f"Open {(BUILD / 'html/index.html').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
