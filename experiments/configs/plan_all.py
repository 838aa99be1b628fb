"""Plans every recipe for the machines that its head names, and writes each plan to plans/.

Command:  python experiments/configs/plan_all.py [RECIPE ...] [--search]
Needs:    pip install '.[tpu-plan,gpu-plan]'
Runs on:  two CPU cores; one to three minutes a plan, and several times that with --search.
Result:   plans/RECIPE.TARGET.md

No weights and no network: of each model models/ has the config.json that the Hugging Face hub has.
"""

import argparse
import contextlib
import os
import re
from dataclasses import replace
from pathlib import Path

from selecttkd_jax.planning import plan
from selecttkd_jax.runs import RunConfig, load_config

HERE = Path(__file__).parent
STUDENTS = {"runs/qwen2-1.5b-sft": "Qwen2-1.5B-Instruct"}  # where a recipe starts from a student of its own


def main() -> None:
    """Plans and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="names without .toml; left out: all")
    parser.add_argument("--target", default="", help="only targets that begin so")
    parser.add_argument("--search", action="store_true", help="search the largest batch that fits, too")
    arguments = parser.parse_args()
    for path in sorted(HERE.glob("*.toml")):
        if arguments.recipes and path.stem not in arguments.recipes:
            continue
        targets = re.findall(r"--target (\S+)", path.read_text())
        for target in (target for target in targets if target.startswith(arguments.target)):
            output = HERE / "plans" / f"{path.stem}.{target.replace(':', '-')}.md"
            output.parent.mkdir(exist_ok=True)
            print(output.relative_to(HERE), flush=True)
            unfinished = output.with_suffix(".unfinished")
            with unfinished.open("w") as file, contextlib.redirect_stdout(file):
                plan(offline(load_config(path)), target, search=arguments.search)
            unfinished.rename(output)


def offline(config: RunConfig) -> RunConfig:
    """The recipe with its models' local config.json in place of the hub's."""

    def local(name: str) -> str:
        return os.path.relpath(HERE / "models" / STUDENTS.get(name, name.rpartition("/")[2]))

    names = replace(config.models, teacher=local(config.models.teacher), student=local(config.models.student))
    return replace(config, models=names)


if __name__ == "__main__":
    main()
