"""The command ``release``. Arguments in, one call, words out; no torch at import."""

from __future__ import annotations

import json
from pathlib import Path

from openbezoar.cli_arguments import RunPath, graph_of
from openbezoar.errors import RunError


def release(run_path: RunPath) -> None:
    """Make or refresh a run's release by its recipe's release step.

    Example: openbezoar release runs/demo
    """
    from openbezoar import graph as graphs
    from openbezoar.graph import open_run
    from openbezoar.progress import for_terminal

    folder = open_run(run_path)
    about = folder.path / "run.json"
    if not about.is_file():
        raise RunError(f"{run_path}: no run.json; finish the run with 'openbezoar run RECIPE' first")
    content = json.loads(about.read_text(encoding="utf-8"))
    graph = graph_of(Path(content["recipe"]), content["overrides"], folder.path.parent)
    steps = [n for n, node in graph.nodes.items() if node.verb == "release"]
    if not steps:
        raise RunError(f"{content['recipe']}: no release step; add one, such as release: {{release: [NAME OF A MERGE STEP]}}")
    for name in steps:
        graphs.execute(graph, for_terminal(), name)
        print(folder.step(name))
