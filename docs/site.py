"""What the site has besides docs/: pages that lie elsewhere, and links that work here and there.

mkdocs calls these functions (`hooks` in mkdocs.yml). In the repository each link names a file by
its place beside the page; on the site a page that lies elsewhere has a name of its own, and a file
that is no page has none: of a link to it only the words are left.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
# Where a page lies in the repository, and its name on the site.
ELSEWHERE = {
    "hparams/Steer/dataset.md": "data-sets.md",
    "steer/evaluate/probes/README.md": "probes.md",
    "tutorial-notebooks/README.md": "notebooks.md",
    "demo/EasySteer_demo/README.md": "web-demo.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"\[(?P<words>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for place, name in ELSEWHERE.items():
        text = (ROOT / place).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links to other pages right for the site."""
    del config
    name = page.file.src_uri
    places = {on_site: place for place, on_site in ELSEWHERE.items()}
    folder = PurePosixPath(places.get(name, f"docs/{name}")).parent

    def moved(link: re.Match[str]) -> str:
        place = os.path.normpath(folder / link["path"]).replace(os.sep, "/")
        target = ELSEWHERE.get(place, place.removeprefix("docs/"))
        if target not in files.src_uris:
            # A page's name that is wrong is left to mkdocs, which says so.
            return link["words"] if (ROOT / place).exists() else link[0]
        path = os.path.relpath(target, PurePosixPath(name).parent).replace(os.sep, "/")
        return f"[{link['words']}]({path}{link['anchor'] or ''})"

    return LINK.sub(moved, markdown)
