"""Subjects and targets among the tokens, for every kind of tokenizer, against oracles that know no offsets.

The oracle of a position is decoding: the subject is complete after its last token, and not before it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emendo.editing.contexts import FIXED_CONTEXTS
from emendo.errors import InputError, RequestError
from emendo.models import EditableModel
from emendo.models.alignment import AlignedEdit, align_edit, align_prompt, encode_target
from emendo.requests import EditRequest, Join, continuation
from tests.conftest import TRAINING_TEXT, build_tokenizer
from tests.every import every

CORPUS = [*TRAINING_TEXT, "于巴黎 于巴 位于巴 黎罗 «Paris» “Rome” (Paris) Parisian Romans", "東京タワーはパリ にある。"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]

# ---- tokenizers --------------------------------------------------------------------------------------------


def byte_level(*, trim: bool = False, eos: bool = False, nfc: bool = False) -> PreTrainedTokenizerFast:
    """Variants of the byte-level BPE tokenizer: GPT-2's trimmed offsets, an EOS at the end, Qwen's normalizer."""
    tokenizer = build_tokenizer()
    core = tokenizer.backend_tokenizer
    steps = [processors.ByteLevel(trim_offsets=trim)]
    if eos:
        template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
        steps.append(template)
    core.post_processor = processors.Sequence(steps)
    if nfc:
        core.normalizer = normalizers.NFC()
    return tokenizer


def sentencepiece(scheme: str, *, bos: bool = True) -> PreTrainedTokenizerFast:
    """A "▁" tokenizer with byte fallback, as Llama-2 has it: by Metaspace, or by its older normalizers."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    learnt = json.loads(trained.to_str())["model"]
    vocab = {token: index for index, token in enumerate([*sorted(learnt["vocab"], key=learnt["vocab"].get), *BYTES])}
    merges = [tuple(merge) for merge in learnt["merges"]]
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.add_special_tokens(special)
    if scheme == "legacy":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if scheme != "never":
            steps.append(decoders.Strip(" ", 1, 0))
    core.decoder = decoders.Sequence(steps)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def unigram() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer without byte fallback: it has no tokens for most of the world's scripts."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


LOSSLESS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": build_tokenizer,
    "byte-level, BOS": lambda: build_tokenizer(bos=True),
    "byte-level, left-padded": lambda: build_tokenizer(bos=True, padding_side="left"),
    "byte-level, trimmed offsets": lambda: byte_level(trim=True),
    "byte-level, BOS and EOS": lambda: byte_level(eos=True),
    "byte-level, NFC": lambda: byte_level(nfc=True),
    "metaspace first": lambda: sentencepiece("first"),
    "metaspace always": lambda: sentencepiece("always", bos=False),
    "metaspace never": lambda: sentencepiece("never"),
    "Llama-2's normalizers": lambda: sentencepiece("legacy"),
}


def wrapped(tokenizer: PreTrainedTokenizerFast) -> EditableModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=512,
        )
        return EditableModel(LlamaForCausalLM(config).eval(), tokenizer, name="tiny")


ADAPTERS: dict[str, EditableModel] = {}


def adapter_of(kind: str) -> EditableModel:
    if kind not in ADAPTERS:
        ADAPTERS[kind] = wrapped(LOSSLESS[kind]())
    return ADAPTERS[kind]


@pytest.fixture(params=LOSSLESS)
def lm(request: pytest.FixtureRequest) -> EditableModel:
    return adapter_of(request.param)


# ---- oracle ------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Text up to what a tokenizer does not keep: a space in front of everything, composition of accents."""
    return unicodedata.normalize("NFC", text).lstrip(" ")


def check(lm: EditableModel, request: EditRequest, context: str = "{}") -> AlignedEdit:
    """Everything that must hold of one aligned edit."""
    edit = align_edit(lm, request, context)
    lead = context[: context.index("{}")]
    stripped, spaced = continuation(request.text, request.target)
    before = request.prompt[: request.prompt.index("{}")]
    subject_end = plain(lead + before + request.subject.rstrip())
    ids, last = list(edit.prompt.ids), edit.prompt.subject_last
    # The prompt and its target read as they were given, with nothing between or after them.
    assert plain(lm.decode(ids)) == plain(lead + stripped)
    assert plain(lm.decode([*ids, *edit.target_ids])) == plain(lead + stripped + spaced)
    assert ids == lm.encode(lead + stripped)
    assert list(edit.ids) == ids + list(edit.target_ids[:-1])
    # The subject is complete after its last token, and not before.
    assert plain(lm.decode(ids[: last + 1])).startswith(subject_end)
    assert not plain(lm.decode(ids[:last])).startswith(subject_end)
    # One BOS where the model expects it, and no special token anywhere else.
    special = set(lm.tokenizer.all_special_ids)
    assert not special & {*ids[1:], *edit.target_ids}
    assert (ids[0] in special) == (lm.encode("a")[0] in special)
    # The target's tokens are those of the plain prompt.
    prompt_ids, target_ids = encode_target(lm, request.text, request.target)
    assert target_ids == list(edit.target_ids)
    assert tuple(prompt_ids) == align_prompt(lm, request).ids
    return edit


CASES = {
    "first": ("{} is located in the city of", "The Eiffel Tower", "Rome"),
    "middle": ("The mother tongue of {} is", "Danielle Darrieux", "English"),
    "last": ("I love {}", "Paris", "very much indeed"),
    "the whole prompt": ("{}", "The Eiffel Tower", "is in Rome"),
    "one letter": ("{} b", "a", "c"),
    "the second of three": ("Paris and {} in Paris are", "Paris", "Rome"),
    "the last of three": ("Paris Paris {}", "Paris", "Paris"),
    "the first of three": ("{} Paris Paris", "Paris", "Paris"),
    "its own prefix before it": ("Par Pari {} is", "Paris", "Rome"),
    "inside a word": ("The {}ian people are", "Paris", "Romans"),
    "end of a word": ("un{} is", "Paris", "Rome"),
    "inside letters": ("a{}b c", "Paris", "Rome"),
    "possessive": ("{}'s capital is", "France", "Rome"),
    "straight quotes": ('He said "{}" and meant', "Paris", "Rome"),
    "curly quotes": ("He said “{}” and meant", "Paris", "Rome"),
    "guillemets": ("Il dit «{}", "Paris", "Rome"),
    "brackets": ("The city ({}) is", "Paris", "Rome"),
    "punctuation in it": ("Did {} play", "Wham! (U.K.)", "Rome"),
    "spaces around it": ("a {} b", "  Paris \t", "Rome"),
    "spaces before the prompt": ("  {} b", "Paris", "Rome"),
    "a space after the prompt": ("{} is ", "Paris", "Rome"),
    "a target with its space": ("{} is", "Paris", " Rome"),
    "a target after a bracket": ("{} (in", "Paris", "Rome"),
    "a target in a quote": ('{} is called "', "Paris", "the city of Rome"),
    "a target after a line break": ("Where is {}?\nAnswer:\n", "Paris", "Rome"),
    "a target on a new line": ("{} is", "Paris", "\nRome"),
    "a prompt of lines": ("{}\n\nis\tin", "Paris\nFrance", "Rome\nItaly"),
    "many tokens": ("{} is", "Paris", "the capital of France, " * 10),
    "digits": ("The year {} was after", "1984", "1983.5"),
    "Chinese": ("{}位于", "埃菲尔铁塔", "巴黎"),
    "Chinese, last": ("我爱{}", "巴黎", "罗马"),
    "Chinese, punctuation": ("问：{}在哪里？答：", "埃菲尔铁塔", "罗马"),
    "Japanese": ("{}は", "東京タワー", "ローマにある"),
    "Korean": ("{}은", "에펠탑", "로마"),
    "Thai": ("{}อยู่ที่", "หอไอเฟล", "โรม"),
    "Arabic": ("يقع {} في", "برج إيفل", "روما"),
    "Hebrew": ("{} נמצא ב", "מגדל אייפל", "רומא"),
    "Cyrillic": ("Где {} находится: в", "Эйфелева башня", "Риме"),
    "Devanagari": ("{} यहाँ है:", "एफिल टॉवर", "रोम"),
    "emoji": ("I like {} in", "🗼👨‍👩‍👧", "🇮🇹 Rome"),
    "accents apart": ("Le {} est", "cafe\u0301", "e\u0301te\u0301"),
    "ligatures": ("The ﬁrst {} is", "ﬁne ½ Å", "Ⅳ"),
}


@pytest.mark.parametrize("context", ["{}", FIXED_CONTEXTS[1], "Paris (Paris). {}", "巴黎。{}"])
def test_position_and_target(lm: EditableModel, context: str) -> None:
    for case in CASES.values():
        check(lm, EditRequest(*case), context)


@pytest.mark.parametrize("kind", [kind for kind in LOSSLESS if "NFC" not in kind])
def test_an_accent_after_the_subject_is_not_the_subjects(kind: str) -> None:
    lm = adapter_of(kind)
    aligned = align_prompt(lm, EditRequest("a {}\u0301x is", "cafe", "Rome"))
    assert lm.decode(aligned.ids[: aligned.subject_last + 1]) == "a cafe"


def test_a_composed_accent_is_in_the_subjects_last_token() -> None:
    lm = adapter_of("byte-level, NFC")
    aligned = align_prompt(lm, EditRequest("a {}\u0301x is", "cafe", "Rome"))
    assert lm.decode(aligned.ids[: aligned.subject_last + 1]).startswith("a caf\u00e9")
    assert not lm.decode(aligned.ids[: aligned.subject_last]).startswith("a caf\u00e9")


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize(
    ("prompt", "subject", "last"),
    [
        ("Paris and {} in Paris are", "Paris", "Paris and Paris"),
        ("Paris {} Paris", "Paris", "Paris Paris"),
        ('He said "{}" twice: "Paris"', "Paris", 'He said "Paris'),
    ],
)
def test_the_slot_counts_not_the_word(kind: str, prompt: str, subject: str, last: str) -> None:
    lm = adapter_of(kind)
    aligned = align_prompt(lm, EditRequest(prompt, subject, "x"))
    assert plain(lm.decode(aligned.ids[: aligned.subject_last + 1])) == last


LETTER = st.sampled_from("aeP ris.,!?'\"()-«»“”„¿0é\u0301ß塔巴はトหแरशאب🗼\u200d\n\t\u00a0\u3000\u2028Ⅳﬁ")
ANY = st.characters(exclude_categories=("Cs",), exclude_characters="{}<\ufffd▁")
TEXT = st.text(LETTER | ANY, max_size=12)
FIXED_SETTINGS = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])


@pytest.mark.parametrize("kind", [kind for kind in LOSSLESS if "NFC" not in kind])
@FIXED_SETTINGS
@given(before=TEXT, subject=TEXT, after=TEXT, target=TEXT, context=st.sampled_from(["{}", FIXED_CONTEXTS[2]]))
def test_position_and_target_of_any_text(
    kind: str, before: str, subject: str, after: str, target: str, context: str
) -> None:
    assume(subject.strip() and target.strip())
    request = EditRequest(f"{before}{{}}{after}", subject, target)
    # Where a text begins with spaces, a tokenizer of words need not keep them all.
    assume(not request.text.startswith(" ") or context != "{}" or "byte" in kind)
    # The oracle cannot see composition: what normal form joins, it counts as one.
    whole = context.replace("{}", request.text) + target
    assume(unicodedata.is_normalized("NFC", whole))
    check(adapter_of(kind), request, context)


@pytest.mark.parametrize("kind", LOSSLESS)
@FIXED_SETTINGS
@given(suffixes=st.lists(st.text("abcdeParis巴é", min_size=1, max_size=8), min_size=2, max_size=4))
def test_what_follows_the_subject_changes_nothing_up_to_it(kind: str, suffixes: list[str]) -> None:
    """By causality the subject's key must not hang on the rest of the prompt."""
    lm = adapter_of(kind)
    found = set()
    for suffix in ["", *(f" {suffix}" for suffix in suffixes)]:
        aligned = align_prompt(lm, EditRequest("The city of {}" + suffix, "Darrieux Tower", "Rome"))
        found.add((aligned.ids[: aligned.subject_last + 1], aligned.subject_last))
    assert len(found) == 1


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_truncation_settings_change_nothing_and_are_not_changed(kind: str, side: str) -> None:
    tokenizer = LOSSLESS[kind]()
    request = EditRequest(*CASES["middle"])
    expected = align_edit(adapter_of(kind), request, FIXED_CONTEXTS[1])
    tokenizer.padding_side = tokenizer.truncation_side = side
    tokenizer.model_max_length = 4
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64, direction=side, pad_id=1)
    assert align_edit(wrapped(tokenizer), request, FIXED_CONTEXTS[1]) == expected
    assert (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length) == (side, side, 4)


def test_bos_is_exactly_what_the_tokenizer_adds() -> None:
    request = EditRequest(*CASES["first"])
    bare, bos, both = (
        align_edit(adapter_of(kind), request) for kind in ("byte-level", "byte-level, BOS", "byte-level, BOS and EOS")
    )
    assert bos.prompt.ids == (0, *bare.prompt.ids)
    assert bos.prompt.subject_last == bare.prompt.subject_last + 1
    assert bos.target_ids == bare.target_ids
    assert both == bos  # and no EOS between prompt and target


# ---- targets -----------------------------------------------------------------------------------------------


@every(
    ("prompt", "target", "expected"),
    [
        ("It is", "Rome", ("It is", " Rome")),
        ("It is", " Rome", ("It is", " Rome")),
        ("It is", "   Rome  ", ("It is", " Rome")),
        ("It is  ", "Rome", ("It is", " Rome")),
        ("It is ", " Rome", ("It is", " Rome")),
        ("", "Rome", ("", " Rome")),
        ("  ", "Rome", ("", " Rome")),
        # Line breaks are text, not spacing.
        ("A:\n", "Rome", ("A:\n", "Rome")),
        ("A:\n\n", "Rome\n", ("A:\n\n", "Rome")),
        ("A: \n", "Rome", ("A: \n", "Rome")),
        ("A:\n ", "Rome", ("A:\n", " Rome")),
        ("A:\n", " Rome", ("A:\n", " Rome")),
        ("A:\t", "Rome", ("A:\t", "Rome")),
        ("It is", "\nRome", ("It is", "\nRome")),
        ("It is ", "\n Rome", ("It is", "\n Rome")),
        ("Il dit «\u00a0", "Rome", ("Il dit «\u00a0", "Rome")),
        # Brackets, quotes, hyphens.
        ("It (", "Rome", ("It (", "Rome")),
        ("It ( ", "Rome", ("It (", " Rome")),
        ("It [", "Rome", ("It [", "Rome")),
        ("It (is)", "Rome", ("It (is)", " Rome")),
        ("1914-", "18", ("1914-", "18")),
        ('It is "', "Rome", ('It is "', "Rome")),
        ('It "is"', "Rome", ('It "is"', " Rome")),
        ("It is “", "Rome", ("It is “", "Rome")),
        ("It “is” “", "Rome", ("It “is” “", "Rome")),
        ("It “is”", "Rome", ("It “is”", " Rome")),
        ("It is '", "Rome", ("It is '", "Rome")),
        ("It is ('", "Rome", ("It is ('", "Rome")),
        ("The boys'", "Rome", ("The boys'", " Rome")),
        ("'", "Rome", ("'", "Rome")),
        ("Er sagt „", "Rom", ("Er sagt „", "Rom")),
        ("Er sagt „ja“", "Rom", ("Er sagt „ja“", " Rom")),
        ("Il dit «", "Rome", ("Il dit «", "Rome")),
        ("Il dit «oui»", "Rome", ("Il dit «oui»", " Rome")),
        ("Han siger »ja«", "Rom", ("Han siger »ja«", " Rom")),
        ("¿", "Roma", ("¿", "Roma")),
        ("答：「", "巴黎", ("答：「", "巴黎")),
        # Scripts without spaces, with their marks and punctuation.
        ("位于", "巴黎", ("位于", "巴黎")),
        ("位于 ", "巴黎", ("位于", " 巴黎")),
        ("答案：", "巴黎", ("答案：", "巴黎")),
        ("是的，", "巴黎", ("是的，", "巴黎")),
        ("是的。", "巴黎", ("是的。", "巴黎")),
        ("タワー", "東京", ("タワー", "東京")),
        ("佐々", "木", ("佐々", "木")),
        ("ﾀﾜｰ", "ﾊﾟﾘ", ("ﾀﾜｰ", "ﾊﾟﾘ")),
        ("อยู่ที่", "โรม", ("อยู่ที่", "โรม")),
        ("位于", "Paris", ("位于", " Paris")),
        ("in", "巴黎", ("in", " 巴黎")),
        ("에펠탑은", "로마", ("에펠탑은", " 로마")),
        ("В городе", "Рим", ("В городе", " Рим")),
        ("I 🗼", "🗼", ("I 🗼", " 🗼")),
    ],
)
def test_spacing_between_prompt_and_target(prompt: str, target: str, expected: tuple[str, str]) -> None:
    assert continuation(prompt, target) == expected


@given(prompt=TEXT, target=TEXT)
def test_spacing_keeps_every_visible_character(prompt: str, target: str) -> None:
    assume(target.strip())
    stripped, spaced = continuation(prompt, target)
    assert prompt.startswith(stripped)
    assert not prompt[len(stripped) :].strip(" ")
    assert spaced.strip() == target.strip()
    assert len(spaced) - len(spaced.lstrip(" ")) <= 1 or not target[0].isspace() or "\n" in spaced or spaced[0] != " "
    # What separates them is settled by the first call: a second one changes nothing.
    if spaced[0].isspace():
        assert continuation(stripped, spaced) == (stripped, spaced)


@pytest.mark.parametrize("target", ["", " ", "\n\t", "\u3000"])
def test_an_empty_target_is_refused(target: str) -> None:
    with pytest.raises(RequestError, match="empty"):
        continuation("It is", target)
    with pytest.raises(RequestError, match="empty"):
        encode_target(adapter_of("byte-level"), "位于", target)


BORDERS = [
    *(("位于", "巴黎"), ("于", "巴"), ("The (", "Paris"), ("«", "Paris"), ("a-", "Parisian"), ("\n", "\nRome")),
    ("x\n", "Rome"),
]


def test_a_merge_across_the_border_changes_neither_prompt_nor_text(lm: EditableModel) -> None:
    """Scores of different targets are conditioned on one prompt, and no space appears between the two."""
    for prompt, target in BORDERS:
        prompt_ids, target_ids = encode_target(lm, prompt, target)
        stripped, spaced = continuation(prompt, target)
        assert prompt_ids == lm.encode(stripped)
        assert plain(lm.decode([*prompt_ids, *target_ids])) == plain(stripped + spaced)


def test_there_are_merges_across_the_border() -> None:
    """What the test above is for does happen, else it would test nothing."""
    lm = adapter_of("metaspace first")
    prompt_ids, target_ids = encode_target(lm, "位于", "巴黎")
    joint = lm.encode("位于巴黎")
    assert joint[: len(prompt_ids)] != prompt_ids
    assert target_ids != lm.encode_bare("巴黎")  # which has a "▁" in front


def test_targets_that_a_tokenizer_cannot_write_are_refused() -> None:
    lm = wrapped(unigram())
    for prompt, target in [("It is", "โรม"), ("โรม", "โรม"), ("It is", "Rome 🗼")]:
        with pytest.raises(RequestError, match="has no tokens for the target"):
            encode_target(lm, prompt, target)
    assert plain(lm.decode(encode_target(lm, "It is", "Rome")[1])) == "Rome"


def test_a_subject_that_reads_like_any_unknown_name_is_refused() -> None:
    """Its edit would be found at every such name."""
    lm = wrapped(unigram())
    with pytest.raises(RequestError, match="no tokens for the subject 'โรม'"):
        align_prompt(lm, EditRequest("It is {} in", "โรม", "Rome"))
    align_prompt(lm, EditRequest("It is {} in", "Rome โรม", "Rome"))  # a part of it is known


def test_a_subject_of_no_tokens_is_refused() -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(RequestError, match=r"no token of .* overlaps the subject"):
        align_prompt(wrapped(tokenizer), EditRequest("a {} b", "\u200b", "c"))
    with pytest.raises(InputError):
        wrapped(tokenizer).encode("\u200b")


def test_the_model_is_not_run_and_the_tokenizer_not_changed(lm: EditableModel) -> None:
    digest = lm.tokenizer.backend_tokenizer.to_str()
    lm.model.forward = None  # running it would fail
    try:
        for case in CASES.values():
            align_edit(lm, EditRequest(*case))
    finally:
        del lm.model.forward
    assert lm.tokenizer.backend_tokenizer.to_str() == digest


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("join", ["auto", "space", "none"])
def test_search_and_score_spell_a_target_alike(kind: str, join: Join) -> None:
    lm = adapter_of(kind)
    for prompt, target in [("It is in {} $", "20"), ("It is in {}", "Rome"), ("{}位于", "巴黎"), ("{} is 19", "84")]:
        request = EditRequest(prompt, "Paris", target, join=join)
        searched = align_edit(lm, request)
        scored = encode_target(lm, *request.pair(request.text, target))
        assert (list(searched.prompt.ids), list(searched.target_ids)) == scored
        text = "".join(continuation(request.text, target, join))
        assert plain(lm.decode([*searched.prompt.ids, *searched.target_ids])) == plain(text)
