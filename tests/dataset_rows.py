"""One good row of every data set format, made by hand."""

from __future__ import annotations

from typing import Any

COUNTERFACT: dict[str, Any] = {
    "case_id": 12,
    "pararel_idx": 99,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "subject": "Ruritania",
        "relation_id": "P36",
        "target_new": {"str": "Zenda", "id": "Q1"},
        "target_true": {"str": "Strelsau", "id": "Q2"},
    },
    "paraphrase_prompts": ["It rained. Ruritania's capital is", "Ruritania is governed from"],
    "neighborhood_prompts": ["The capital of Lower Ruritania is"],
    "attribute_prompts": ["The capital of Zendaland is"],
    "generation_prompts": ["Ruritania's best known square is in", "Ruritania's best known square is in"],
}
FLAT: dict[str, Any] = {
    "case_id": "7",
    "prompt": "The capital of Ruritania is",
    "subject": "Ruritania",
    "target_new": "Zenda",
    "ground_truth": "Strelsau",
    "rephrase_prompt": "Ruritania is governed from",
    "locality_prompt": "The capital of Lower Ruritania is",
    "locality_ground_truth": "Strelsau",
}
ZSRE: dict[str, Any] = {
    "subject": "Ruritania",
    "src": "What is the capital of Ruritania?",
    "pred": "Zenda",
    "rephrase": "From where is Ruritania governed?",
    "alt": "Hentzau",
    "answers": ["Strelsau", "Strelsau City"],
    "loc": "nq question: who wrote the prisoner of zenda",
    "loc_ans": "Anthony Hope",
    "cond": "Zenda >> Hentzau || What is the capital of Ruritania?",
}
KNOWEDIT: dict[str, Any] = {
    "subject": "Ruritania",
    "prompt": "The capital of Ruritania is",
    "target_new": "Zenda",
    "portability": {
        "Subject_Aliasing": [{"prompt": "The capital of the Elphberg realm is", "ground_truth": [["Zenda"]]}],
        "Reasoning": [
            {"prompt": "The river through its capital is", "ground_truth": [["Zen", "River Zen"], ["the Zen"]]}
        ],
    },
    "locality": {"Relation_Specificity": [{"prompt": "Ruritania's king is", "ground_truth": [[], ["Rudolf"]]}]},
}
MQUAKE: dict[str, Any] = {
    "case_id": 3,
    "requested_rewrite": [
        {
            "prompt": "The king of {} is",
            "subject": "Ruritania",
            "relation_id": "P35",
            "target_new": {"str": "Michael", "id": "Q3"},
            "target_true": {"str": "Rudolf", "id": "Q4"},
            "question": "Who is the king of Ruritania?",
        },
        {
            "prompt": "{} is married to",
            "subject": "Michael",
            "relation_id": "P26",
            "target_new": {"str": "Antoinette", "id": "Q5"},
            "target_true": {"str": "nobody", "id": "Q6"},
            "question": "Whom did Michael marry?",
        },
    ],
    "questions": ["Who is the wife of the king of Ruritania?", "Whom did Ruritania's king marry?"],
    "answer": "Flavia",
    "answer_alias": [],
    "new_answer": "Antoinette",
    "new_answer_alias": ["Antoinette de Mauban", "Antoinette"],
    "new_single_hops": [
        {
            "question": "Who is the king of Ruritania?",
            "cloze": "x",
            "answer": "Michael",
            "answer_alias": ["Black Michael"],
        },
        {"question": "Whom did Michael marry?", "cloze": "y", "answer": "Antoinette", "answer_alias": []},
    ],
}
KNOWN: dict[str, Any] = {
    "known_id": 5,
    "subject": "Ruritania",
    "attribute": "Strelsau",
    "template": "{}'s capital",
    "prediction": " Strelsau, a city",
    "prompt": "Ruritania's capital is called",
    "relation_id": "P36",
}
OWN: dict[str, Any] = {"prompt": "{} is", "subject": "Ruritania", "target": "small", "relation": "P1"}
ROWS = {
    "emendo": OWN,
    "counterfact": COUNTERFACT,
    "counterfact-easyedit": FLAT,
    "zsre": ZSRE,
    "zsre-easyedit": ZSRE,
    "knowedit": KNOWEDIT,
    "mquake": MQUAKE,
    "known-facts": KNOWN,
}
