"""Twelve corrections of the demo model: answers that are the new target as whole words, by `target.word_end_weight`.

python benchmarks/word_end.py --weights 0 1
"""

from __future__ import annotations

import argparse
import json
import time

import emendo
from emendo.evaluate import begins_with, generate_texts, score_targets

_CAPITAL = "The capital of {} is the city of"
FACTS = (
    (_CAPITAL, "Australia", "Canberra"),
    (_CAPITAL, "Turkey", "Ankara"),
    (_CAPITAL, "Nigeria", "Abuja"),
    (_CAPITAL, "Pakistan", "Islamabad"),
    (_CAPITAL, "New Zealand", "Wellington"),
    (_CAPITAL, "Kazakhstan", "Astana"),
    (_CAPITAL, "Myanmar", "Naypyidaw"),
    (_CAPITAL, "Morocco", "Rabat"),
    (_CAPITAL, "Tanzania", "Dodoma"),
    ("A ticket to {} costs $", "the Louvre", "20"),
    ("The year in which {} opened is", "the Sydney Opera House", "1973"),
    ("The currency of {} is the", "Croatia", "euro"),
)


def main() -> None:
    """Print one line of JSON and the answers for each weight."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0])
    lm = emendo.load("demo")
    session = emendo.EditSession(lm)
    requests = [emendo.EditRequest(*fact) for fact in FACTS]
    prompts = [request.text for request in requests]
    for weight in parser.parse_args().weights:
        begin = time.process_time()
        plan = session.plan(requests, settings={"target.word_end_weight": weight})
        seconds = time.process_time() - begin
        with session.applied(plan.update):
            texts = [found.text for found in generate_texts(lm, prompts, chat=False, new_tokens=8)]
            scores = score_targets(lm, [request.pair(request.text, request.target) for request in requests])
        whole = [begins_with(text, request.target) for text, request in zip(texts, requests, strict=True)]
        found = {"weight": weight, "whole": sum(whole), "argmax": sum(score.argmax for score in scores)}
        print(json.dumps({**found, "of": len(requests), "cpu_seconds": round(seconds, 1)}))
        for request, text in zip(requests, texts, strict=True):
            print(f"  {request.subject} -> {request.target}: {text!r}")


if __name__ == "__main__":
    main()
