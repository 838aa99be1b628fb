"""JSON files as we write them; `_outside_files` reads them."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object as people read it: indented, one line at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
