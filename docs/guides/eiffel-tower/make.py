"""The picture of layers in eiffel-tower.md: a trace of one fact, and one edit of it at each of nine layers.

emendo trace --model demo --prompt "{} is located in the city of" --subject "The Eiffel Tower" --out out/trace
python docs/guides/eiffel-tower/make.py out/trace docs/guides/eiffel-tower/layers.png
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

from emendo import EditRecord, EditRequest, EditSession, load
from emendo.evaluate import evaluate_records
from emendo.evaluate.aggregate import record_measures
from emendo.report.line_picture import draw_panels
from emendo.report.lines import Line, Panel, Point
from emendo.tracing import read_trace

LAYERS = (1, 3, 5, 7, 10, 14, 18, 22, 26)
KINDS = {"state": "hidden", "MLP": "mlp", "attention": "attention"}


def sweep() -> list[dict[str, float]]:
    """One edit of the fact at each layer, on the unedited model every time."""
    row = json.loads((resources.files("emendo") / "data" / "demo_facts.jsonl").read_text().splitlines()[0])
    request = EditRequest(row["prompt"], row["subject"], row["target"])
    probes = {name: tuple(row[name]) for name in ("paraphrase_prompts", "neighborhood_prompts")}
    record = EditRecord(request, target_true=row["target_true"], **probes)
    lm = load("demo")
    session, found = EditSession(lm), []
    for layer in LAYERS:
        plan = session.plan([request], "emmet", layers=[layer])
        with session.preview([plan.update]) as edited:
            (scored,) = evaluate_records(edited, [record]).records
        found.append({"layer": layer, "cost": plan.layers[0].relative_cost or 0.0, **record_measures(scored)})
        print(found[-1])
    return found


def main() -> None:
    """Draw the picture."""
    folder, picture = Path(sys.argv[1]), Path(sys.argv[2])
    (fact,) = read_trace(folder / "trace.safetensors").facts
    edits, span = sweep(), (0.0, 29.0)

    def effect(what: str, token: str) -> Line:
        place = [text.strip() for text in fact.tokens].index(token)
        values = fact.effects(KINDS[what])[place]
        return Line(f"{what} at “{token}”", tuple(Point(layer, float(v)) for layer, v in enumerate(values)))

    def measured(name: str, label: str) -> Line:
        return Line(label, tuple(Point(row["layer"], 100 * row[name]) for row in edits))

    states = (effect("state", "iffel"), effect("state", "Tower"), effect("state", "of"))
    modules = (effect("MLP", "iffel"), effect("MLP", "Tower"), effect("attention", "of"))
    holds = (measured("EP", "Rome, own prompt"), measured("PP", "Rome, paraphrases"))
    panels = [
        Panel("Where the city is read: effect of a state", states, "probability of Paris", "layer", span),
        Panel("… and of a module's output", modules, "probability of Paris", "layer", span),
        Panel("One edit at one layer", (*holds, measured("NA", "Paris, neighbors")), "percent", "layer", span),
        Panel("What it costs preserved text", (measured("cost", "relative cost"),), "percent", "layer", span),
    ]
    title = "The Eiffel Tower: where its city is read, and where it can be written"
    note = "demo model; trace: 10 draws of noise, window 10; edits: emmet at one layer, the unedited model each time"
    picture.write_bytes(draw_panels(title, note, panels))


if __name__ == "__main__":
    main()
