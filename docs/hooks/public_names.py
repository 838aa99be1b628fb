"""Warns, and so stops the build, where a public name of the package has no entry on an API page."""

import ast
import logging
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "selecttkd_jax"
log = logging.getLogger("mkdocs.hooks.public_names")


def on_post_build(config):
    """Looks for every name of every room's `__all__` among the anchors of the built pages."""
    pages = "".join(page.read_text() for page in (Path(config["site_dir"]) / "api").glob("*.html"))
    for name in public_names():
        if f'id="{name}"' not in pages:
            log.warning("%s is public and on no page of docs/api", name)


def public_names():
    """The dotted names that the rooms say are public, read without importing them; the command line is no library."""
    for file in sorted(PACKAGE.glob("*/__init__.py")):
        if file.parent.name != "cli":
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
                    yield from (f"{PACKAGE.name}.{file.parent.name}.{name}" for name in ast.literal_eval(node.value))
