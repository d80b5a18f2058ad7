"""The language model between two resamplers: losses, generation, LoRA, files."""

from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LogitsProcessorList

from seedx_lite.models.generation import ImageTokenProcessor
from seedx_lite.models.mllm import ContinuousLVLM, ContinuousLVLMConfig, _is_frozen, leave_out_base
from seedx_lite.presets import load_preset

BOI, IMAGE, EOI, EOS = 58, [48, 49, 50, 51], 59, 2
CONFIG = {
    "llm": {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,  # large enough for answers to differ
    },
    "input_resampler": {"grid_size": 2, "embed_dim": 32, "num_heads": 4, "kv_dim": 16},
    "output_resampler": {"grid_size": 2, "embed_dim": 16, "num_heads": 4, "kv_dim": 32},
    "boi_token_id": BOI,
    "image_token_ids": IMAGE,
    "eoi_token_id": EOI,
}


def make_model(seed=0, **settings):
    torch.manual_seed(seed)
    return ContinuousLVLM(ContinuousLVLMConfig(**CONFIG | settings)).eval()


@pytest.fixture(scope="module")
def model():
    return make_model()


def say(model, after: int, token: int, strength: float = 60.0):
    """Make `token` the answer to `after`, whatever came before: its embedding is large, and the head looks for it."""
    with torch.no_grad():
        direction = torch.nn.functional.normalize(torch.randn(32), dim=0)
        model.llm.get_input_embeddings().weight[after] = direction * strength
        model.llm.get_output_embeddings().weight[token] = direction * strength
    return model


def batch_of(rows, pictures=0, read=(), drawn=()):
    """rows: of (ids, what each position is: t text, r read, d drawn); all text is trained."""
    ids, kinds = (torch.tensor(x) for x in ([r[0] for r in rows], [[ord(k) for k in r[1]] for r in rows]))
    torch.manual_seed(1)
    places = torch.arange(pictures)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.where(kinds == ord("t"), ids, -100),
        "ids_cmp_mask": kinds == ord("r"),
        "ids_gen_mask": kinds == ord("d"),
        "image_embeds": torch.randn(pictures, 16, 16),
        "embeds_cmp_mask": torch.isin(places, torch.tensor(read, dtype=torch.long)),
        "embeds_gen_mask": torch.isin(places, torch.tensor(drawn, dtype=torch.long)),
        "patch_positions": torch.rand(pictures, 2),
    }


def test_every_parameter_has_a_gradient_whatever_the_batch(model):
    """Bug: a batch without pictures leaves parameters without gradient, and several devices wait for each other."""
    text = batch_of([([1, 5, 6, 7, 8, 9], "tttttt")])
    reads = batch_of([([1, BOI, *IMAGE, EOI, 7], "ttrrrrtt")], pictures=1, read=[0])
    for batch in (text, text | {"image_embeds": None}, reads, reads | {"patch_positions": None}):
        model.zero_grad()
        out = model(**batch)
        assert out.rec_loss == 0 and out.loss == out.lm_loss
        out.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_places_that_are_not_told_change_nothing(model):
    """Bug: a picture that is not cut is told to lie in a corner, where the released code tells nothing."""
    batch = batch_of([([1, BOI, *IMAGE, EOI, 7], "ttrrrrtt")], pictures=1, read=[0]) | {"patch_positions": None}
    without = make_model(add_patch_pos=False)
    without.load_state_dict({key: tensor for key, tensor in model.state_dict().items() if key != "patch_pos_embed"})
    assert torch.equal(model(**batch).lm_loss, without(**batch).lm_loss)


def test_checkpoints_of_activations(model):
    """Bug: activations that are computed again for want of memory give other gradients, or none."""
    batch = batch_of([([1, BOI, *IMAGE, EOI, 2], "ttddddtt")], pictures=1, drawn=[0])
    grads = []
    for use in (model.activation_checkpointing_disable, model.activation_checkpointing_enable):
        use()
        model.train().zero_grad()
        model(**batch).loss.backward()
        grads.append(model.llm.model.layers[0].mlp.up_proj.weight.grad.clone())
    model.eval().activation_checkpointing_disable()
    assert torch.allclose(*grads, atol=1e-6) and grads[0].any()


def test_targets_get_no_gradient(model):
    """Bug: a vision encoder that is trained along learns to be easy to predict."""
    batch = batch_of([([1, BOI, *IMAGE, EOI, 2], "ttddddtt")], pictures=1, drawn=[0])
    batch["image_embeds"].requires_grad_()
    model(**batch).loss.backward()
    assert batch["image_embeds"].grad is None or not batch["image_embeds"].grad.any()


def test_positions_of_sub_images_count(model):
    """Bug: the place of a sub-image is lost, so that left and right look alike to the model."""
    batch = batch_of([([1, BOI, *IMAGE, EOI, 7], "ttrrrrtt")], pictures=1, read=[0])
    moved = {**batch, "patch_positions": 1 - batch["patch_positions"]}
    assert (model(**batch).lm_loss - model(**moved).lm_loss).abs() > 1e-5


def test_counts_that_do_not_match(model):
    """Bug: a picture's embeddings slide into the positions of the next one, without a word."""
    row = ([1, BOI, *IMAGE, EOI, 7], "ttrrrrtt")
    with pytest.raises(ValueError, match="ids_cmp_mask marks 4 positions, but 2 pictures are read and take 4 each"):
        model(**batch_of([row], pictures=2, read=[0, 1]))
    row = ([1, BOI, *IMAGE, EOI, 7], "ttddddtt")
    for pictures, said in ((3, "4 positions, for 3 pictures"), (0, "4 positions, for 0 pictures")):
        with pytest.raises(ValueError, match=said):
            model(**batch_of([row], pictures=pictures, drawn=range(pictures)))


def test_nothing_to_train_is_said(model):
    """Bug: labels that mask everything make the loss NaN, and the model with it."""
    batch = batch_of([([1, 5, 6], "ttt")])
    with pytest.raises(ValueError, match="no label of this batch is trained"):
        model(**batch | {"labels": torch.full((1, 3), -100)})


def token_by_token(model, ids, official, most, **pictures):
    """Plain greedy search of transformers with the processor: the new ids and their hidden states, where read."""
    chain = model.config.chain
    out = model.llm.generate(
        inputs_embeds=model.embed(ids, **pictures),
        attention_mask=torch.ones_like(ids),
        logits_processor=LogitsProcessorList([_Prompted(ids, ImageTokenProcessor(chain, official))]),
        max_new_tokens=most,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=EOS,
        return_dict_in_generate=True,
        output_hidden_states=True,
    )
    hidden = [states[-1][0] for states in out.hidden_states[1:]]
    return out.sequences[0].tolist(), torch.cat(hidden) if hidden else None


class _Prompted:
    """With `inputs_embeds` the processor would not see the last id of the prompt."""

    def __init__(self, prompt, processor):
        self.prompt, self.processor = prompt, processor

    def __call__(self, input_ids, scores):
        return self.processor(torch.cat([self.prompt, input_ids], dim=1), scores)


def test_official_pictures_without_a_beginning():
    """Bug: with all scores negative the released code writes a picture's tokens without `<img>`, and draws it."""
    model = say(make_model(official=True), after=9, token=BOI)
    with torch.no_grad():
        head = model.llm.get_output_embeddings().weight
        head[:] = -head[BOI]
    ids = torch.tensor([[1, 5, 9]])
    [answer] = model.generate(ids, max_new_tokens=7)
    expected, hidden = token_by_token(model, ids, True, 7)
    assert answer.sequence == expected and expected[:5] == [*IMAGE, EOI]
    wanted = model.output_resampler(hidden[None, : len(IMAGE)])[0]
    assert (answer.pictures[0] - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_one_pass_equals_token_by_token(official, seed):
    """Bug: image tokens that see too little or too much of the cache, or stand at wrong positions; text after a picture
    that differs from what plain generation says."""
    model = say(make_model(seed, official=official), after=9, token=BOI)
    ids = torch.tensor([[1, 3 + seed, 30, 9] if seed % 2 else [1, 3 + seed, 30, BOI]])
    [answer] = model.generate(ids, max_new_tokens=16)
    expected, hidden = token_by_token(model, ids, official, 16)
    late = len(expected) if official else 16 - len(model.config.chain) + 1  # from there on no picture is begun
    same = next((i for i, token in enumerate(expected) if token == BOI and i >= late), len(expected))
    assert answer.sequence[:same] == expected[:same] and len(answer.pictures) >= 1
    ends = [i for i, token in enumerate(answer.sequence) if token == EOI]
    for picture, end in zip(answer.pictures, ends, strict=True):
        states = hidden[end - len(IMAGE) : end]
        wanted = model.output_resampler(states[None])[0]
        assert (picture - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_several_prompts_at_once(model):
    """Bug: padding on the left, a neighbour's picture, or its end, changes what a prompt is answered."""
    torch.manual_seed(2)
    prompts = [[1, 7, 8, 9, 10, 11, BOI], [1, 20, BOI, *IMAGE, EOI, 21, 22], [1, 30, 31]]
    longest, embeds = max(map(len, prompts)), torch.randn(1, 16, 16)
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    cmp = torch.isin(ids, torch.tensor(IMAGE))
    shown = {"image_embeds": embeds, "patch_positions": torch.tensor([[0.25, 0.5]])}
    together = model.generate(ids, mask, ids_cmp_mask=cmp, **shown, max_new_tokens=12, force_image=True)
    assert [len(answer.pictures) for answer in together] == [1, 1, 1]
    for row, (prompt, answer) in enumerate(zip(prompts, together, strict=True)):
        own = {**shown, "ids_cmp_mask": cmp[row : row + 1, longest - len(prompt) :]} if row == 1 else {}
        [alone] = model.generate(torch.tensor([prompt]), **own, max_new_tokens=12, force_image=True)
        assert alone.sequence == answer.sequence and alone.text_ids == answer.text_ids
        for one, other in zip(alone.pictures, answer.pictures, strict=True):
            assert (one - other).abs().max() <= 1e-5 * one.abs().max()


def test_image_is_forced_after_the_text():
    """Bug: `force_image` draws in the middle of a sentence, twice, or not at all."""
    model = say(make_model(), after=9, token=EOS)
    ids = torch.tensor([[1, 5, 9]])
    [plain], [forced] = (model.generate(ids, max_new_tokens=20, force_image=force) for force in (False, True))
    assert plain.sequence == [EOS] and not plain.pictures
    assert forced.sequence[:6] == [BOI, *IMAGE, EOI] and len(forced.pictures) == 1
    talks = say(make_model(), after=9, token=9)  # never ends by itself
    [forced] = talks.generate(ids, max_new_tokens=20, force_image=True)
    assert forced.sequence == [9] * 14 + [BOI, *IMAGE, EOI] and forced.text_ids == [9] * 14
    with pytest.raises(ValueError, match="leaves 5 where 6 are needed"):
        talks.generate(ids, max_new_tokens=5, force_image=True)


def test_pictures_that_do_not_fit():
    """Bug: a picture is begun that has to be cut off; officially it is, and its tokens are taken for text."""
    ids = torch.tensor([[1, 5, 9]])
    ours, official = (say(make_model(official=official), 9, BOI) for official in (False, True))
    [answer] = ours.generate(ids, max_new_tokens=5)
    assert len(answer.sequence) <= 5 and not set(answer.sequence) & {BOI, *IMAGE, EOI}
    [answer] = official.generate(ids, max_new_tokens=5)
    assert answer.sequence == [BOI, *IMAGE] and answer.text_ids == IMAGE and not answer.pictures
    [answer] = ours.generate(ids, max_new_tokens=6)
    assert answer.sequence == [BOI, *IMAGE, EOI] and len(answer.pictures) == 1 and not answer.text_ids


def test_no_image_token_outside_a_picture():
    """Bug: where all scores are negative the released code makes image tokens the likeliest, amid the text."""
    model = make_model()
    with torch.no_grad():
        model.llm.get_output_embeddings().weight[:] = 0
        model.llm.get_output_embeddings().weight[[*IMAGE, EOI]] = 1.0
    for ids in (torch.tensor([[1, 5]]), torch.tensor([[1, 6]])):
        [answer] = model.generate(ids, max_new_tokens=8)
        assert not set(answer.sequence) & {*IMAGE, EOI}
    with torch.no_grad():
        model.llm.get_output_embeddings().weight[5] = 1.5
    model.config.unused_token_ids = [5]  # an image token beyond N
    assert 5 not in model.generate(torch.tensor([[1, 6]]), max_new_tokens=8)[0].sequence
    scores = -torch.rand(2, 60) - 1
    last = torch.tensor([[1, 5], [1, BOI]])
    official = ImageTokenProcessor(model.config.chain, official=True)(last, scores)
    assert official[0].argmax() == IMAGE[0] and official[1].argmax() == IMAGE[0]
    ours = ImageTokenProcessor(model.config.chain)(last, scores)
    assert ours[0].argmax() == scores[0, [*range(48), *range(52, 59)]].argmax() and ours[0, BOI] == scores[0, BOI]
    assert ours[1].isfinite().nonzero().flatten().tolist() == IMAGE[:1]


def test_prompts_that_cannot_be_answered(model):
    """Bug: a prompt beyond the context is answered with noise; one padded on the right is answered from its padding."""
    with pytest.raises(ValueError, match="65 tokens in a context of 64"):
        model.generate(torch.full((1, 65), 5))
    with pytest.raises(ValueError, match="pad prompts on the left"):
        model.generate(torch.tensor([[1, 5, 0]]), torch.tensor([[1, 1, 0]]))
    with pytest.raises(ValueError, match="ends inside a picture"):
        model.generate(torch.tensor([[1, BOI, IMAGE[0]]]))
    with pytest.raises(ValueError, match="set them in the configuration"):
        make_model(boi_token_id=None).generate(torch.tensor([[1, 5]]))


def hidden_of(model):
    ids = torch.arange(3, 17).reshape(2, 7)
    with torch.no_grad():
        return model.llm.get_decoder()(inputs_embeds=model.embed(ids)).last_hidden_state


def test_lora_is_saved_read_and_merged(tmp_path):
    """Bugs: LoRA changes the model before it is trained; norms or adapters are lost in a file, or in merging; matrices
    that were frozen are trained after reading."""
    model = make_model()
    before = hidden_of(model)
    model.add_lora(r=4, lora_alpha=8)
    assert torch.equal(hidden_of(model), before)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert len(frozen) == 2 * (7 + 2) + 1  # seven matrices and two norms in each of two layers, the last norm
    trained = hidden_of(moved(model))
    assert (trained - before).abs().max() > 0.1
    model.save_pretrained(tmp_path / "lora")
    again = ContinuousLVLM.from_pretrained(tmp_path / "lora")
    assert torch.equal(hidden_of(again), trained) and again.config.lora == {
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
    }
    assert {name for name, p in again.named_parameters() if not p.requires_grad} == frozen
    merged = again.merge_lora()
    assert torch.allclose(hidden_of(merged), trained, atol=1e-4) and type(merged.llm) is LlamaForCausalLM
    merged.save_pretrained(tmp_path / "merged")
    plain = ContinuousLVLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(hidden_of(plain), hidden_of(merged)) and all(p.requires_grad for p in plain.parameters())
    with pytest.raises(ValueError, match="no LoRA to merge"):
        plain.merge_lora()
    with pytest.raises(ValueError, match="LoRA is there already"):
        model.add_lora()


def test_only_what_was_trained_is_stored(tmp_path):
    """Bugs: a base that is not merged, or read as the wrong kind of model; a model that is saved again without what it
    stands on; trained weights that come from the base."""
    plain = make_model()
    plain.llm.save_pretrained(tmp_path / "llama")
    first = moved(plain.add_lora(r=4, lora_alpha=8))
    first.save_pretrained(tmp_path / "first")
    wanted = [hidden_of(first)]
    second = moved(first.merge_lora().add_lora(r=2, lora_alpha=2))
    second.save_pretrained(tmp_path / "second")
    wanted.append(hidden_of(second))
    sizes = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("first", "second")}
    for name, base in (("first", "../llama"), ("second", "../first")):
        leave_out_base(tmp_path / name, base)
        assert (tmp_path / name / "model.safetensors").stat().st_size < sizes[name]
    for name, hidden in zip(sizes, wanted, strict=True):
        again = ContinuousLVLM.from_pretrained(tmp_path / name, attn_implementation="eager")
        assert torch.allclose(hidden_of(again), hidden, atol=1e-4) and not again.training
        assert again.config.lora and again.config.chain == plain.config.chain and again.config.base is None
        assert all(parameter.requires_grad != _is_frozen(key) for key, parameter in again.named_parameters())
        again.save_pretrained(tmp_path / "whole")
        assert torch.allclose(hidden_of(ContinuousLVLM.from_pretrained(tmp_path / "whole")), hidden, atol=1e-4)
    with pytest.raises(ValueError, match=r"llama.*without LoRA"):
        leave_out_base(tmp_path / "llama", "..")
    moved(make_model()).llm.save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"llama has other weights than those that .*first was trained upon"):
        ContinuousLVLM.from_pretrained(tmp_path / "second")
    (tmp_path / "llama" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"llama is missing; .*first holds only what was trained upon it"):
        ContinuousLVLM.from_pretrained(tmp_path / "second")


def moved(model):
    """With every trained parameter elsewhere."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def test_files_that_do_not_fit(model, tmp_path):
    """Bug: keys that do not match are dropped with a print, and the model draws noise."""
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["more"], tensors["llm.lm_head.weight"] = tensors.pop("patch_pos_embed"), torch.zeros(61, 32)
    save_file(tensors, file, metadata={"format": "pt"})
    shape = r"llm.lm_head.weight \[61, 32\] instead of \[60, 32\]"
    with pytest.raises(ValueError, match=f"missing: patch_pos_embed; unexpected: more; of another shape: {shape}"):
        ContinuousLVLM.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*config\.json is missing"):
        ContinuousLVLM.from_pretrained(tmp_path / "nowhere")


def test_begins_with_a_trained_language_model(tmp_path):
    """Bug: the language model is made new around its configuration, and all that it had learned is gone."""
    preset = load_preset("smoke")
    kwargs = preset.mllm_kwargs
    llm = LlamaForCausalLM(ContinuousLVLMConfig(**kwargs).llm)
    llm.save_pretrained(tmp_path)
    model = ContinuousLVLM.from_llm(tmp_path, **{key: value for key, value in kwargs.items() if key != "llm"})
    assert torch.equal(model.llm.lm_head.weight, llm.lm_head.weight)
    assert model.config.llm.vocab_size == preset.llm.vocab_size
    assert len(model.add_lora(**preset.lora_kwargs).output_resampler.query) == preset.n_embeddings


def test_presets_without_a_language_model():
    """Bug: a preset that cannot draw fails deep in transformers, without naming the entry."""
    with pytest.raises(ValueError, match="has no `mllm`"):
        _ = load_preset("smoke", ["mllm=null"]).mllm_kwargs
    with pytest.raises(ValueError, match="n_embeddings=32"):
        _ = load_preset("smoke", ["n_embeddings=32"]).mllm_kwargs
    with pytest.raises(ValueError, match="input_tokens=8"):
        load_preset("smoke", ["mllm.input_tokens=8"])
    assert asdict(load_preset("lite").mllm)["lora_r"] == 32
