"""Build the book: execute every chapter that changed, in parallel, then write the site from scratch.

    python book/build.py [--jobs 2]

Any warning and any failed cell fails the build. Outputs are reused while nothing they depend on changed: a chapter's
cells (jupyter-cache compares them), the package, the shipped results, the pinned versions and DTL_SCALE.
"""

import argparse
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
CHAPTERS = sorted((ROOT / "chapters").glob("*.md"))
READER = {"name": "myst_nb_md", "type": "plugin"}


def dependencies_key() -> str:
    """Hash of what chapters depend on besides their own cells."""
    key = hashlib.sha256(f"{sys.version} {os.environ.get('DTL_SCALE', '')}".encode())
    files = [*ROOT.glob("dtl/**/*.py"), *ROOT.glob("book/results/**/*"), ROOT / "constraints.txt"]
    for file in sorted(file for file in files if file.is_file()):
        key.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return key.hexdigest()


def execute(jobs: int) -> int:
    """Execute the chapters whose outputs are not in the cache. Returns how many there were."""
    key, key_file = dependencies_key(), CACHE / "dependencies"
    if not key_file.is_file() or key_file.read_text() != key:
        shutil.rmtree(CACHE, ignore_errors=True)
    cache = get_cache(CACHE)
    key_file.parent.mkdir(parents=True, exist_ok=True)
    key_file.write_text(key)
    for chapter in CHAPTERS:
        cache.add_nb_to_project(str(chapter), read_data=READER)
    timeout = yaml.safe_load((ROOT / "_config.yml").read_text())["execute"]["timeout"]
    todo: list[Any] = [record for record in cache.list_unexecuted() if str(record.uri) in map(str, CHAPTERS)]
    if not todo:
        return 0
    failed = []
    with multiprocessing.get_context("spawn").Pool(jobs, quiet_kernels) as pool:
        # Last first: later chapters compute more, and a long one should not start when the others are done.
        todo.sort(key=lambda record: record.uri, reverse=True)
        work = [ProcessData(record.pk, record.uri, cache, timeout, False) for record in todo]
        for code, uri in pool.imap_unordered(ExecutionWorkerLocalMProc(), work, chunksize=1):
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
    parser = argparse.ArgumentParser(description="Build the book into _build/html.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="chapters executed at the same time")
    jobs = parser.parse_args().jobs
    # Kernels inherit these: one thread per worker of dtl, one line per progress bar, no debugger notice.
    os.environ |= {"OMP_NUM_THREADS": "1", "DTL_PROGRESS": "line", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}

    start = time.perf_counter()
    print("Fetching scripts and fonts, writing notebooks ...", flush=True)
    vendor()
    sync()
    fetched = time.perf_counter()
    print(f"Executing the chapters that changed, {jobs} at a time ...", flush=True)
    executed = execute(jobs)
    ran = time.perf_counter()
    print("Writing the site ...", flush=True)
    write_site()
    written = time.perf_counter()
    print(f"fetched in {fetched - start:.0f} s, site written in {written - ran:.0f} s,", end=" ")
    print(f"executed {executed} of {len(CHAPTERS)} chapters in {ran - fetched:.0f} s")
    print(f"Open {(BUILD / 'html/index.html').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
