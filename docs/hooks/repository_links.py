"""Pages link to files of the repository beside docs/; on the site those files are pages, too, below repository/.

So a link is the same on a code host, in an editor and on the site, and none leads out of it. Markdown is rendered, text
is shown as code, a folder is a list, and pictures and tables are copied.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#\s])")
IN_NAVIGATION = ("CHANGELOG.md", "CONTRIBUTING.md", "experiments/README.md")
SHOWN = {".py": "python", ".toml": "toml", ".txt": "text", ".cff": "yaml", "": "makefile"}


def on_files(files, config):
    """Adds every file that a page links to, and those that these link to."""
    docs = Path(config["docs_dir"])
    waiting = [docs / file.src_uri for file in files.documentation_pages()]
    wanted = [ROOT / name for name in IN_NAVIGATION]
    while waiting or wanted:
        wanted += linked(waiting.pop()) if waiting else []
        for target in wanted:
            name = site_name(target)
            if not target.is_relative_to(docs) and files.get_file_from_path(name) is None:
                files.append(as_file(target, name, config))
                waiting.append(target)
        wanted = []
    return files


def on_page_markdown(markdown, page, config, files):
    """Writes the links of a page as the site has them."""
    source = repository_path(page.file.src_uri)
    docs = Path(config["docs_dir"])

    def rewrite(match):
        target = (source.parent / match[1]).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            return match[1]
        name = str(target.relative_to(docs)) if target.is_relative_to(docs) else site_name(target)
        return os.path.relpath(name, Path(page.file.src_uri).parent)

    return LINK.sub(rewrite, markdown)


def linked(source):
    """The files of the repository that a page links to; those of a folder; none of what is not Markdown."""
    if source.is_dir():
        return sorted(path for path in source.iterdir() if not path.name.startswith((".", "_")))
    if source.suffix != ".md":
        return []
    found = [(source.parent / link).resolve() for link in LINK.findall(source.read_text())]
    return [path for path in found if path.exists() and path.is_relative_to(ROOT)]


def site_name(path):
    """Where a file of the repository is among the site's sources."""
    name = f"repository/{path.relative_to(ROOT)}"
    return f"{name}/index.md" if path.is_dir() else f"{name}.md" if path.suffix in SHOWN else name


def repository_path(name):
    """The other way round; for a page of docs/, its file."""
    if not name.startswith("repository/"):
        return ROOT / "docs" / name
    path = ROOT / name.removeprefix("repository/").removesuffix("/index.md")
    # The links of a folder's page are written from within it.
    return path / "index.md" if path.is_dir() else path


def as_file(path, name, config):
    """A file of the site for a file of the repository."""
    if path.is_dir():
        items = "\n".join(f"- [{one.name}]({one.name})" for one in linked(path))
        return File.generated(config, name, content=f"# {path.relative_to(ROOT)}\n\n{items}\n")
    if path.suffix in SHOWN:
        head = f"---\nhide: [toc]\nsearch: {{exclude: true}}\n---\n\n# {path.relative_to(ROOT)}\n\n"
        body = f"~~~~{SHOWN[path.suffix]}\n{path.read_text()}\n~~~~\n"
        return File.generated(config, name, content=head + body)
    return File.generated(config, name, abs_src_path=str(path))
