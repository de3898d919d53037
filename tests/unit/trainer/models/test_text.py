"""Text towers: the joint one is made from the captions' words, a pretrained one is loaded from a
folder and frozen, or refused with its path."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file
from tiny_encoders import save_endless_qwen
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
)
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

from daybreak_trainer import rank
from daybreak_trainer.contract import ExitCode
from daybreak_trainer.models.encoding import encode
from daybreak_trainer.models.padding import Padding
from daybreak_trainer.models.pretrained import copied, is_unreachable, placed
from daybreak_trainer.models.text import build
from daybreak_trainer.models.text_report import lengths
from daybreak_trainer.models.tokenizers import END, PAD, UNKNOWN, word_tokenizer
from daybreak_trainer.recipe import RecipeError
from daybreak_trainer.recipe.text import Text

WORDS = ["red", "circle", "a"]
CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
SMALL = {
    "vocab_size": 6,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def t5() -> T5Config:
    return T5Config(vocab_size=6, d_model=24, d_kv=4, d_ff=32, num_layers=1, num_heads=4)


def t5gemma() -> T5GemmaConfig:
    half = T5GemmaModuleConfig(**SMALL, num_key_value_heads=2, head_dim=4)
    return T5GemmaConfig(encoder=half, decoder=half, vocab_size=6)


ENCODERS: dict[str, Callable[[], torch.nn.Module]] = {
    "T5 encoder": lambda: T5EncoderModel(t5()),
    "T5": lambda: T5ForConditionalGeneration(t5()),
    "T5Gemma": lambda: T5GemmaForConditionalGeneration(t5gemma()),
    "CLIP text": lambda: CLIPTextModel(
        CLIPTextConfig(**SMALL, max_position_embeddings=16, bos_token_id=1, eos_token_id=2)
    ),
    "Gemma": lambda: GemmaForCausalLM(GemmaConfig(**SMALL, num_key_value_heads=2, head_dim=4)),
    "Qwen": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=4)),
}


def saved(folder: Path, kind: str, **special: str) -> Path:
    """A folder as `save_pretrained` writes it, `special` its special tokens if not the usual."""
    ENCODERS[kind]().save_pretrained(folder)  # type: ignore[operator]
    tokens = special or {"pad_token": PAD, "unk_token": UNKNOWN, "eos_token": END}
    words = word_tokenizer(WORDS, 16)
    PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer, **tokens).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("encoder") / "t5", "T5 encoder")


def pretrained(path: Path, max_tokens: int = 8) -> Text:
    return Text(kind="pretrained", path=str(path), max_tokens=max_tokens, caption_dropout=0.1)


def joint(max_tokens: int = 8) -> Text:
    return Text(
        kind="joint",
        max_tokens=max_tokens,
        hidden_size=16,
        depth=1,
        heads=4,
        caption_dropout=0.1,
    )


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_pretrained_encoder_is_loaded_whole_and_frozen(kind: str, tmp_path: Path) -> None:
    """Hidden size, mask and weights are the folder's own, nothing of it is trained, and its hidden
    states are the same twice."""
    tower = build(pretrained(saved(tmp_path, kind)), [], seed=0)
    ids, mask = tower.tokenize(["a red circle", ""], CPU)
    hidden = encode(tower.encoder, ids, mask)
    assert (tower.trained, tower.hidden_size, hidden.shape) == (False, 24, (2, 8, 24))
    assert mask.sum(dim=1).tolist() == [4, 1]
    assert not hidden.requires_grad
    assert not any(parameter.requires_grad for parameter in tower.encoder.parameters())
    assert torch.equal(hidden, encode(tower.encoder, ids, mask))
    stored = load_file(tmp_path / WEIGHTS)
    for name, parameter in tower.encoder.named_parameters():
        names = (name, f"model.{name}", f"transformer.{name}")
        assert any(n in stored and torch.equal(stored[n], parameter) for n in names), name


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_frozen_encoder_is_read_in_the_precision_that_it_computes_in(
    kind: str, tmp_path: Path
) -> None:
    """Its weights alone: rotary frequencies stay fp32. It takes its mask in the same form, and
    hidden states are the same but for rounding."""
    recipe = pretrained(saved(tmp_path, kind))
    exact, tower = (
        build(recipe, [], seed=0, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    assert {p.dtype for p in tower.encoder.parameters()} == {torch.bfloat16}
    assert tower.mask_form == exact.mask_form
    wanted, mask = exact.embed(["a red circle", "a"])
    hidden, _ = tower.embed(["a red circle", "a"])
    apart = (hidden.float() - wanted)[mask].norm()
    assert apart < 0.03 * wanted[mask].norm()
    ids = exact.tokenize(["a red circle", "a"], CPU)
    with torch.no_grad():
        lent = encode(copied(exact.encoder, CPU, torch.bfloat16), *ids, exact.mask_form)
    assert torch.equal(lent, hidden)
    assert {p.dtype for p in exact.encoder.parameters()} == {torch.float32}
    placed(exact.encoder, CPU, torch.bfloat16)
    assert torch.equal(exact.embed(["a red circle", "a"])[0], hidden)
    for module in (exact, tower):
        kept = {b.dtype for b in module.encoder.buffers() if b.is_floating_point()}
        assert kept <= {torch.float32}


@pytest.mark.parametrize("kind", ENCODERS)
def test_padding_does_not_change_a_captions_hidden_states(kind: str, tmp_path: Path) -> None:
    """The encoder gets the mask: a caption's own tokens are the same beside any padding."""
    folder = saved(tmp_path, kind)
    states = []
    for max_tokens in (4, 12):
        tower = build(pretrained(folder, max_tokens), [], seed=0)
        states.append(encode(tower.encoder, *tower.tokenize(["a red circle"], CPU))[:, :4])
    torch.testing.assert_close(states[0], states[1], rtol=1e-5, atol=1e-6)


def test_without_a_pad_token_the_end_token_pads(tmp_path: Path) -> None:
    """Decoders such as Llama's have none; the mask hides the padding all the same."""
    folder = saved(tmp_path, "Gemma", unk_token=UNKNOWN, eos_token=END)
    tower = build(pretrained(folder), [], seed=0)
    ids, mask = tower.tokenize(["red"], CPU)
    assert tower.tokenizer.pad_token == END
    assert mask[0].tolist() == [True, True] + [False] * 6
    assert set(ids[0, 2:].tolist()) == {tower.tokenizer.eos_token_id}


def test_the_empty_prompt_is_a_prompt_of_a_tokenizer_that_ends_nothing(tmp_path: Path) -> None:
    """Qwen's: its end token goes behind every text, cut or not, and the tokenizer that is exported
    does so too."""
    tower = build(pretrained(save_endless_qwen(tmp_path / "qwen")), [], seed=0)
    _, mask = tower.tokenize(["", "red", "a red circle"], CPU)
    assert mask.sum(dim=1).tolist() == [1, 4, 8]
    tower.tokenizer.save_pretrained(tmp_path / "exported")
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")
    end = exported.eos_token_id
    assert exported(["", "red"])["input_ids"] == tower.tokenizer(["", "red"])["input_ids"]
    assert exported("a red circle", max_length=8, truncation=True)["input_ids"][-1] == end


def _rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def _without_a_tensor(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights.pop("encoder.block.0.layer.1.DenseReluDense.wo.weight")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_rewrite(WEIGHTS, lambda raw: b""), "header too small"),
        (_rewrite(WEIGHTS, lambda raw: raw[:300]), "invalid header length"),
        (_rewrite(WEIGHTS, lambda raw: raw[:-1]), "not fully covered"),
        (_rewrite(WEIGHTS, lambda raw: b"<html>not found</html>" * 50), "header too large"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no file named"),
        (_without_a_tensor, "lack 1 tensors, among them encoder.block.0.layer.1.DenseReluDense"),
        (_rewrite("config.json", lambda raw: b"\xff"), "not a valid JSON"),
        (_rewrite("config.json", lambda raw: b"[]"), ""),
        (_rewrite("config.json", lambda raw: raw.replace(b": 24", b": 48")), ""),
        (_rewrite("tokenizer.json", lambda raw: b"{"), "EOF while parsing"),
    ],
)
def test_a_damaged_folder_is_a_bad_recipe(
    t5_folder: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    """Whatever is wrong with which file: exit code 64, and the path in the message. Weights that
    lack a tensor are damaged too, where transformers would draw it at random."""
    folder = shutil.copytree(t5_folder, tmp_path / "t5")
    spoil(folder)
    with pytest.raises(RecipeError) as caught:
        build(pretrained(folder), [], seed=0)
    record = rank.failure(caught.value, 0, rank.Standing())
    assert (record.exit_code, record.traceback) == (ExitCode.BAD_RECIPE, "")
    assert f"recipe.text.path: cannot load a text encoder from '{folder}': " in record.message
    assert sentence in record.message


def test_a_path_that_is_nothing_is_a_bad_recipe(tmp_path: Path) -> None:
    """Neither a folder nor a repository's name."""
    with pytest.raises(RecipeError, match=f"from '{tmp_path}/nothing': "):
        build(pretrained(tmp_path / "nothing"), [], seed=0)


def test_what_cannot_encode_text_is_refused_before_training(tmp_path: Path) -> None:
    """A model that wants pictures, too many tokens for the encoder's positions, nothing to pad
    with: said at the start, not in the first step."""
    whole = CLIPConfig(
        text_config={**SMALL, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={
            **{key: value for key, value in SMALL.items() if key != "vocab_size"},
            "image_size": 8,
            "patch_size": 4,
        },
        projection_dim=8,
    )
    clip = saved(tmp_path / "clip", "CLIP text")
    with pytest.raises(RecipeError, match="max_position_embeddings"):
        build(pretrained(clip, max_tokens=17), [], seed=0)
    CLIPModel(whole).save_pretrained(clip)
    with pytest.raises(RecipeError, match="pixel_values"):
        build(pretrained(clip), [], seed=0)
    unpadded = saved(tmp_path / "gemma", "Gemma", unk_token=UNKNOWN)
    with pytest.raises(RecipeError, match="does not have a padding token"):
        build(pretrained(unpadded), [], seed=0)


def test_the_joint_tower_knows_the_captions_words() -> None:
    """One token a word, whatever its case and order; others are one token; an end token makes the
    empty prompt a prompt; long captions are cut and keep their end."""
    tower = build(joint(), [*WORDS, "red"], seed=0)
    ids, mask = tower.tokenize(["A red CIRCLE", "a purple circle", "", "red " * 20], CPU)
    words = [tower.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
    assert words[0] == ["a", "red", "circle", END, *[PAD] * 4]
    assert words[1][:4] == ["a", UNKNOWN, "circle", END]
    assert words[2] == [END, *[PAD] * 7]
    assert words[3] == ["red"] * 7 + [END]
    assert mask.sum(dim=1).tolist() == [4, 4, 1, 8]


def test_the_joint_tower_is_trained_and_equal_for_equal_seeds() -> None:
    """Every rank builds the same; building it leaves the process's own generator alone."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    towers = [build(joint(), WORDS, seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    weights = [dict(tower.encoder.named_parameters()) for tower in towers]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert all(tower.trained and tower.hidden_size == 16 for tower in towers)
    assert all(parameter.requires_grad for parameter in towers[0].encoder.parameters())


@pytest.mark.parametrize(
    ("causes", "unreachable"),
    [
        ((LocalEntryNotFoundError, ConnectionError), True),
        ((LocalEntryNotFoundError, OfflineModeIsEnabled), False),
        ((ValueError,), False),
        ((), False),
    ],
)
def test_a_hub_that_does_not_answer_is_no_mistake_of_the_recipe(
    causes: tuple[type[Exception], ...], unreachable: bool
) -> None:
    """A wrong name ends the run; a hub that is down may answer the next attempt."""
    error = top = OSError("We couldn't connect")
    for cause in causes:
        error.__cause__ = cause("as the libraries chain them")
        error = error.__cause__  # type: ignore[assignment]
    assert is_unreachable(top) is unreachable


COUNTS = {"watercolour": 900, "of": 800, "lighthouse": 700, "a": 2000, "the": 1500, "light": 300}


def pieces(max_tokens: int = 24) -> Text:
    return joint(max_tokens).model_copy(update={"vocabulary": "pieces", "vocabulary_size": 330})


def test_pieces_are_learned_from_counts_alone_and_know_every_text(tmp_path: Path) -> None:
    """Frequent words are one token, and nothing is unknown, whatever its alphabet; the same counts
    in any order give the same tokenizer, and it reloads as an ordinary one of Hugging Face."""
    tower = build(pieces(), COUNTS, seed=0)
    again = build(pieces(), dict(reversed(COUNTS.items())), seed=0)
    assert tower.tokenizer.get_vocab() == again.tokenizer.get_vocab()
    assert len(tower.tokenizer) <= 330
    captions = ["A lighthouse", "light house", "žluťoučký 灯台!", ""]
    ids, mask = tower.tokenize(captions, CPU)
    assert mask.sum(dim=1).tolist()[0] == 3  # a, lighthouse, end
    assert mask.sum(dim=1).tolist()[3] == 1
    assert not (ids == tower.tokenizer.unk_token_id).any()
    assert not torch.equal(ids[0], ids[1])
    tower.tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded(captions)["input_ids"] == tower.tokenizer(captions)["input_ids"]


def test_padded_lengths_are_few_and_hold_every_caption() -> None:
    """What is compiled for is all that can occur; the mean counts what is computed for padding."""
    padding = Padding(20, 8)
    assert padding.lengths == (8, 16, 20)
    assert {padding.length(tokens) for tokens in range(21)} == set(padding.lengths)
    assert Padding(20, None).lengths == (20,)
    tokens = [3, 17, 4, 18]
    assert padding.mean(tokens, 2, by_length=False) == 20.0
    assert padding.mean(tokens, 2, by_length=True) == 14.0
    assert Padding(20, None).mean(tokens, 2, by_length=True) == 20.0


def test_lengths_of_the_datas_captions_are_told_before_the_first_step() -> None:
    """Mean before cutting, share that is cut, and what is computed with."""
    tower = build(joint(4), ["a", "b"], seed=0)
    sample = {"caption": ["a", "a b a", "a b a b a", "b b b b b b b"]}
    found = lengths(joint(4), tower, sample, 2, seed=0)
    assert found is not None
    assert (found.mean, found.cut_share, found.padded) == (5.0, 0.5, 4.0)
    assert lengths(joint(4), tower, {}, 2, seed=0) is None
