"""Every setting of methods and baselines in one line, with its name in the code of ROME, MEMIT, EMMET and EasyEdit.

`emendo methods NAME`, the settings page of the documentation and the message for an unknown setting read this table.

Source: the hyper-parameter classes of kmeng01/rome, kmeng01/memit, scalable-model-editing/unified-model-editing
    (EMMET), jianghoucheng/AlphaEdit, xpq-tech/PMET and zjunlp/EasyEdit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from emendo.arguments.suggest import unknown_name
from emendo.io.former_names import METHOD_SETTINGS

_ALL = "ROME, MEMIT, EMMET, EasyEdit"
_MANY = "MEMIT, EMMET, EasyEdit"
_TRAINED = "FT and LoRA of EasyEdit"


@dataclass(frozen=True)
class Explained:
    """What a setting does.

    Attributes:
        meaning: One line.
        elsewhere: Its name in other code.
        where: The code that has that name.
        differs: How the value there differs from the value here; empty if it is the same.
    """

    meaning: str
    elsewhere: str = ""
    where: str = ""
    differs: str = ""


EXPLAINED: Mapping[str, Explained] = {
    "layers": Explained("Layers whose MLP down-projection is changed.", "layers", _ALL),
    "n_layers": Explained("How many layers a method edits if no preset and no --layers says which."),
    "batching": Explained("Whether requests are solved together (joint) or each after the other (one_by_one)."),
    "distribution": Explained("How the wanted change is split over the layers; even is 1/(L−i) of what is missing."),
    "contexts.scheme": Explained(
        "Texts put in front of a prompt, or places in a chat, so that an edit holds in more than one context.",
        "context_template_length_params",
        "ROME, EasyEdit",
        "a list of lengths there, a named scheme here",
    ),
    "keys.average": Explained("Weights of the contexts in a mean key: half for the plain prompt, or all alike (flat)."),
    "keys.constraint": Explained("The key at which the edit must hold: the mean over contexts, or the plain prompt's."),
    "keys.residual": Explained("Where the current value is read: at the plain prompt, or as the mean over contexts."),
    "target.site": Explained("Where the new value v* is searched: the block's output, or its MLP's output."),
    "target.steps": Explained("Most steps of the search for v*.", "v_num_grad_steps", _ALL),
    "target.learning_rate": Explained("Learning rate of Adam in the search for v*.", "v_lr", _ALL),
    "target.max_norm_ratio": Explained("Largest ‖δ‖ as a multiple of ‖v₀‖.", "clamp_norm_factor", _ALL),
    "target.kl_weight": Explained("Weight of the KL divergence on '{subject} is a'.", "kl_factor", _ALL),
    "target.weight_decay": Explained("Weight of the penalty on the size of δ.", "v_weight_decay", _ALL),
    "target.loss_threshold": Explained(
        "The search of a request ends when its loss is below this.", "0.05", _ALL, "a fixed number there"
    ),
    "target.argmax_steps": Explained(
        "The search ends this many steps after the target became the most likely text; none turns it off.",
        "prob_cutoff",
        "EMMET",
        "a negative number of steps, one more than here",
    ),
    "target.argmax_nll_weight": Explained(
        "Weight of the target's loss once the target is the most likely text (PMET: 0.1).",
        "nll_loss_factor",
        "PMET, EasyEdit",
        "the weight from the start there",
    ),
    "target.kl_threshold": Explained("The search ends when the target is most likely and the KL is below this."),
    "target.joint_attention": Explained(
        "Search a change of the attention's output too, and leave it unwritten (PMET)."
    ),
    "target.end_of_text": Explained("The end-of-text token belongs to the target, so that the answer ends there."),
    "target.word_end_weight": Explained("Weight of the loss that makes the target end as a whole word."),
    "target.word_end_enough": Explained("Probability of the word's end from which that loss is 0."),
    "target.norm_anchor": Explained("Give v* the norm that the unedited model has at that place."),
    "target.shared": Explained("Who shares one v*: facts with one key, facts on one subject, or none (request)."),
    "target.batch_size": Explained("Requests searched at the same time; changes memory and speed only."),
    "target.precision": Explained("Precision of the matrix products in the search."),
    "moments.source": Explained(
        "Text whose keys are preserved: the model's own (self, kinds), a file, or a mixture.",
        "mom2_dataset",
        _ALL,
    ),
    "moments.multiple": Explained(
        "Tokens of that text, as a multiple of the length of a key.",
        "mom2_n_samples",
        _ALL,
        "documents there, tokens here",
    ),
    "moments.exclude_first": Explained("Leave out the first token of each text, where many models have an outlier."),
    "preservation.weight": Explained("λ: how much the preserved keys count.", "mom2_update_weight", _MANY),
    "preservation.ridge": Explained(
        "How much the size of the update itself counts.", "L2, update_norm_lambda", "AlphaEdit, EMMET"
    ),
    "preservation.null_space": Explained("Change only directions that preserved keys hardly use (AlphaEdit)."),
    "preservation.threshold": Explained(
        "Eigenvalue (or share of energy) that counts as hardly used.", "nullspace_threshold", "AlphaEdit, EasyEdit"
    ),
    "preservation.dead_ridge": Explained("Ridge that is added only if the matrix of preserved keys is singular."),
    "memorization.s": Explained(
        "0: edits hold exactly (ROME, EMMET). 1: least squares (MEMIT).", "emmet_lambda", "EMMET, EasyEdit"
    ),
    "memorization.equality_alone": Explained("A single request holds exactly, whatever memorization.s is."),
    "memorization.share": Explained(
        "Choose λ so that this part of what is missing is written; none takes λ as it stands."
    ),
    "history.weight": Explained("How much the keys of earlier edits count; 0 forgets them."),
    "post.kind": Explained("What is done to a finished update, such as rect, prune or cap."),
    "post.keep": Explained("RECT: the share of entries that is kept."),
    "post.log_base": Explained("PRUNE: base of the logarithm that damps singular values."),
    "post.max_ratio": Explained("cap: largest ‖ΔW‖ / ‖W‖."),
    "fine_tune.steps": Explained("Most passes over all requests.", "num_steps", _TRAINED),
    "fine_tune.learning_rate": Explained("Learning rate of Adam.", "lr", _TRAINED),
    "fine_tune.loss_threshold": Explained("Training ends after a pass whose mean loss is below this."),
    "fine_tune.batch_size": Explained("Requests of one step.", "batch_size", _TRAINED),
    "fine_tune.max_change": Explained(
        "Largest change of a single weight; none leaves it free.", "norm_constraint", _TRAINED
    ),
    "lora.steps": Explained("Most passes over all requests.", "num_steps", _TRAINED),
    "lora.learning_rate": Explained("Learning rate of Adam.", "lr", _TRAINED),
    "lora.loss_threshold": Explained("Training ends after a pass whose mean loss is below this."),
    "lora.batch_size": Explained("Requests of one step.", "batch_size", _TRAINED),
    "lora.rank": Explained("Rank of the adapter.", "rank", _TRAINED),
    "lora.alpha": Explained("The adapter counts alpha / rank.", "lora_alpha", _TRAINED),
    "in_context.template": Explained("Text that is put around the fact and the prompt."),
}
"""By dotted name, in the order in which they are shown; a test compares it with the settings of the classes."""


def explained(name: str) -> Explained:
    """What a setting does; of a setting that a package brings, nothing is known here."""
    return EXPLAINED.get(name, Explained(""))


NOT_SETTINGS: Mapping[str, str] = {
    "fact_token": "an edit is always keyed on the subject's last token (subject_last)",
    "v_loss_layer": "the loss is always read at the model's last layer",
    "layer_selection": "all given layers are edited",
    "mom2_adjustment": "preserved keys always count; preservation.weight=0 with preservation.ridge=1 leaves them out",
    "mom2_dtype": "second moments are summed and solved in float64",
    "rewrite_module_tmp": "the table of model families knows the modules (emendo models)",
    "layer_module_tmp": "the table of model families knows the modules (emendo models)",
    "mlp_module_tmp": "the table of model families knows the modules (emendo models)",
    "attn_module_tmp": "the table of model families knows the modules (emendo models)",
    "ln_f_module": "the table of model families knows the modules (emendo models)",
    "lm_head_module": "the table of model families knows the modules (emendo models)",
    "stats_dir": "second moments are cached under EMENDO_HOME",
    "P_loc": "the null space is computed from the cached second moment",
    "alg_name": "the method's name is --method",
    "model_name": "the model is --model",
    "device": "the device is --device",
    "calculate_objective_value": "every plan reports what it costs (tr ΔW C ΔWᵀ)",
    "norm_control": "the norm of v* can be fixed instead: target.norm_anchor=true",
    "lora_dropout": "adapters are trained without dropout",
    "target_modules": "adapters are on the MLP down-projections",
    "max_length": "prompts are never cut; one that is too long is refused",
}
"""Hyper-parameters of other code that are no setting here, and what stands in their place."""


def names_elsewhere() -> dict[str, list[str]]:
    """Settings by the name that other code has for them."""
    found: dict[str, list[str]] = {}
    for name, setting in EXPLAINED.items():
        for other in filter(str.isidentifier, setting.elsewhere.split(", ")):
            found.setdefault(other, []).append(name)
    return found


def unknown_setting(name: str, known: Collection[str]) -> str:
    """The message for a dotted setting that a method or baseline does not have.

    Args:
        name: What was given; a name that other code has is answered with the one used here.
        known: The settings that it has.
    """
    here = [setting for setting in names_elsewhere().get(name, []) if setting in known]
    if here:
        return f"{name} is called {' or '.join(here)} here (--set {here[0]}=VALUE)"
    if name in NOT_SETTINGS:
        return f"{name} is not a setting: {NOT_SETTINGS[name]}"
    if name in ("layers", "n_layers", *METHOD_SETTINGS):
        return (
            f"{name} cannot be given with --set: layers have an argument of their own, such as --layers 5 or "
            "--layers 4-8 (layers= in Python), and how many there are follows from them"
        )
    return unknown_name("setting", name, sorted(known), "--set NAME=VALUE", most=3)
