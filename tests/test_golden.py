"""Results of the official SEED-X modules at tiny size, reproduced (how they were made: golden/README.md).

Every folder in the environment variable SEEDX_GOLDEN (separated like PATH; default tests/golden) is searched.
The `official.symbol` of a fixture chooses the check, its JSON says the rest: more fixtures need no new test.
"""

import dataclasses
import json
import os
from functools import cached_property
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from seedx_lite.data import anyres, conversations, edits
from seedx_lite.data.collate import collate
from seedx_lite.data.layout import Layout
from seedx_lite.models.detokenizer import SDXLAdapter, SDXLAdapterWithLatentImage, widen_conv_in
from seedx_lite.models.generation import ImageTokenProcessor
from seedx_lite.models.mllm import ContinuousLVLM, ContinuousLVLMConfig
from seedx_lite.models.resamplers import Resampler, ResamplerXLV2
from seedx_lite.models.vit import VisionTransformerWithAttnPool
from seedx_lite.presets import load_preset

OWN = Path(__file__).parent / "golden"
ANY_RES = "select_best_resolution, select_best_resolution_v2, process_anyres_image, divide_to_patches"
FULL_SIZE = "names and shapes of the released files"  # belongs to no single symbol
SFT = "decode_llava_data, decode_single_turn_edit_data"
CAPTIONS = "decode_image_text_pair, tokenize_text, encode_caption_input_ids, encode_caption_input_ids_v2"
NOT_YET = set()


class Fixture:
    """One JSON file and, where there is one, the tensors beside it; floats are cast to float32."""

    def __init__(self, path: Path):
        self.path, self.info = path, json.loads(path.read_text())
        self.name = self.info.get("name", path.stem)
        official = self.info.get("official")
        self.is_fixture = isinstance(official, dict)  # the tokenizer's file is none
        self.symbol = official.get("symbol", FULL_SIZE) if self.is_fixture else None

    @cached_property
    def tensors(self):
        return {
            key: tensor.float() if tensor.is_floating_point() else tensor
            for key, tensor in load_file(self.path.with_suffix(".safetensors")).items()
        }

    def part(self, prefix):
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def load(self, module):
        module.load_state_dict(self.part("weights/"), strict=True)
        return module.eval()

    def compare(self, found):
        """Every output of the fixture is found, in the right shape and within its tolerance."""
        expected = self.part("out/")
        assert expected, f"{self.path} has no outputs"
        assert set(expected) == set(self.info["outputs"]), f"{self.path} and its tensors list different outputs"
        assert set(expected) <= set(found), f"{self.name}: no check for {sorted(set(expected) - set(found))}"
        for key, wanted in expected.items():
            assert found[key].shape == wanted.shape, f"{self.name}: shape of {key}"
            difference = (found[key].float() - wanted.float()).abs().max().item()
            allowed = self.info["outputs"][key]["tolerance_max_abs_diff"]
            assert difference <= allowed, f"{self.name}: {key} differs by {difference:.2g}, allowed {allowed:.2g}"


def discover():
    folders = [Path(f) for f in os.environ.get("SEEDX_GOLDEN", str(OWN)).split(os.pathsep) if f]
    fixtures = [Fixture(path) for folder in folders for path in sorted(folder.glob("*.json"))]
    empty = [str(folder) for folder in folders if not any(folder.glob("*.json"))]
    if empty or not folders:
        raise FileNotFoundError(f"no golden fixtures (*.json) in {empty or 'SEEDX_GOLDEN'}; correct SEEDX_GOLDEN")
    return [f for f in fixtures if f.is_fixture]


def check_vit(fixture):
    model = fixture.load(VisionTransformerWithAttnPool(**fixture.info["config"]))
    stages = {
        "tokens_before_blocks": model.ln_pre,
        "tokens_after_blocks": model.transformer,
        "pooled_before_ln_post": model.attn_pool,
    }
    found = {}
    for key, images in fixture.part("in/").items():
        assert key.endswith("images"), f"{fixture.name}: no check for input {key}"
        seen = {}

        def note(name, seen=seen):
            return lambda _module, _inputs, out: seen.update({name: out})

        hooks = [module.register_forward_hook(note(name)) for name, module in stages.items()]
        seen["image_embeds"] = model(images)
        for hook in hooks:
            hook.remove()
        found |= {key.removesuffix("images") + name: tensor for name, tensor in seen.items()}
    fixture.compare(found)


def check_resampler(fixture):
    model = fixture.load(Resampler(**fixture.info["config"]))
    fixture.compare({key.replace("x", "y", 1): model(x) for key, x in fixture.part("in/").items()})


def check_resampler_xl(fixture):
    found = {}
    config = fixture.info["config"]
    for normalize in (False, True):
        model = fixture.load(ResamplerXLV2(**{**config, "normalize": normalize}, official=True))
        for key, x in fixture.part("in/").items():
            case = f"{key.removesuffix('image_embeds')}normalize_{str(normalize).lower()}/"
            found[f"{case}prompt_embeds"], found[f"{case}pooled"] = model(x)
            if config.get("normalize") is normalize:  # one setting for the whole fixture: no name for the case
                found["prompt_embeds"], found["pooled"] = (found[f"{case}prompt_embeds"], found[f"{case}pooled"])
    fixture.compare(found)


def make_adapter(fixture, cls, **kwargs):
    resampler = ResamplerXLV2(**fixture.info["config"]["resampler"], official=True)
    return cls(UNet2DConditionModel(**fixture.info["config"]["unet"]), resampler, **kwargs)


def check_adapter(fixture, cls=SDXLAdapter):
    adapter = fixture.load(make_adapter(fixture, cls))
    x = fixture.part("in/")
    out = adapter(x["noisy_latents"], x["timesteps"], x["image_embeds"], x["time_ids"])
    prompt_embeds, pooled = adapter.resampler(x["image_embeds"])
    found = {"noise_pred": out, "total_loss": F.mse_loss(out, x["noise"])}
    found |= {"prompt_embeds": prompt_embeds, "pooled": pooled}
    if "conv_in_before/weight" in x:
        unet = UNet2DConditionModel(**fixture.info["config"]["unet"])
        before = {k.removeprefix("conv_in_before/"): v for k, v in x.items() if k.startswith("conv_in_before/")}
        unet.conv_in.load_state_dict(before)
        widen_conv_in(unet)
        found |= {f"conv_in_after/{k}": v for k, v in unet.conv_in.state_dict().items()}
    fixture.compare(found)
    check_trained(fixture, cls)


def check_trained(fixture, cls):
    """Official: exactly its list. Ours: what the official code meant to train, so `to_k` and `to_v` too."""
    for case, lists in fixture.info["trainable"].items():
        full_ft = {"full_ft=False": False, "full_ft=True": True}[case]
        adapter = make_adapter(fixture, cls, full_ft=full_ft)
        every = sorted(dict(adapter.named_parameters()))
        official, intended = (
            every if lists[key] == "every parameter" else sorted(lists[key])
            for key in ("requires_grad", "given_to_the_optimizer")
        )
        assert make_adapter(fixture, cls, full_ft=full_ft, official=True).trained_names() == official
        assert adapter.trained_names() == intended
        keys_and_values = [n for n in every if n.endswith((".to_k.weight", ".to_v.weight"))]
        assert sorted(set(intended) - set(official)) == ([] if full_ft else keys_and_values)


def check_conditioning(fixture):
    x = fixture.part("in/")
    config = fixture.info["config"]["resampler"]
    zero, tokens, pooled = x["zero_image_tokens"], x["image_tokens"], x["pooled_image_embeds"]
    down = tokens.shape[1] // pooled.shape[1]
    cases = {  # name of the case: pooling, arguments
        "from_embeds_vit_down": (down, {"image_embeds": pooled}),
        "from_image": (down, {"image_tokens": tokens}),
        "from_embeds_no_vit_down": (1, {"image_embeds": tokens}),
    }
    found = {}
    for case, (vit_down, arguments) in cases.items():
        adapter = SDXLAdapter(torch.nn.Identity(), ResamplerXLV2(**config, official=True), False, vit_down, True)
        out = fixture.load(adapter).get_image_embeds(zero, **arguments)
        found |= {f"{case}/{name}": tensor for name, tensor in out._asdict().items()}
    fixture.compare(found)


def check_any_res(fixture):
    rows = [(table, row) for table in fixture.info["tables"] for row in table["rows"]]
    assert rows, f"{fixture.path} has no rows"
    for table, row in rows:
        size, base = tuple(row["image_size"]), table["base_resolution"]
        resolutions = anyres.grid_resolutions(table["grids"], base)
        tiling = anyres.tile(size, table["grids"], base)
        found = {
            "v1": anyres.select_best_resolution(size, resolutions),
            "v2": anyres.select_best_resolution_v2(size, resolutions),
            "resolution": tiling.resolution,
            "grid": [side // base for side in tiling.resolution],
            "sub_images": len(tiling.positions),
            "boxes": [list(box) for box in tiling.boxes],
        }
        for key, value in found.items():
            value = list(value) if isinstance(value, tuple) else value
            assert value == row[key], f"{fixture.name}: {key} of {size} at base {base}"
        positions = torch.tensor(tiling.positions)
        assert torch.allclose(positions, torch.tensor(row["patch_pos"]), rtol=0, atol=1e-6), size


def check_any_res_pixels(fixture):
    config = fixture.info["config"]
    found = {}
    for key, pixels in fixture.part("in/").items():
        case = key.removesuffix("image")
        image = Image.fromarray(pixels.numpy())
        images, positions = anyres.process_anyres_image(image, config["grids"], config["base_resolution"])
        flat = b"".join(image.tobytes() for image in images)
        shape = (len(images), config["base_resolution"], config["base_resolution"], 3)
        found[f"{case}sub_images"] = torch.frombuffer(bytearray(flat), dtype=torch.uint8).reshape(shape)
        found[f"{case}patch_pos"] = torch.tensor(positions)
    fixture.compare(found)


def check_full_size_keys(fixture):
    """The preset of the official sizes makes every tensor of the released files, by name and shape."""
    preset = load_preset("seedx-17b")
    detokenizer, llm = "seed_detokenizer/first_stage/pytorch_model.bin", "seed_x/llm"
    with torch.device("meta"):
        lvlm = ContinuousLVLM(ContinuousLVLMConfig(**preset.mllm_kwargs))
        modules = {
            "QwenViT/qwen_vit_G.pt": VisionTransformerWithAttnPool(**vars(preset.vit)),
            detokenizer: SDXLAdapter(
                UNet2DConditionModel(**preset.unet_kwargs), ResamplerXLV2(**preset.resampler_kwargs)
            ),
            llm: lvlm.llm,
        }
        second = SDXLAdapterWithLatentImage(
            UNet2DConditionModel(**preset.unet_kwargs), ResamplerXLV2(**preset.resampler_kwargs), full_ft=True
        )
    files = {name: dict(file.get("tensors", {})) for name, file in fixture.info["files"].items()}
    agent, stage2 = "seed_x/agent/pytorch_model.bin", "seed_detokenizer/second_stage/pytorch_model.bin"
    files[stage2] = files[detokenizer] | fixture.info["files"][stage2]["tensors_that_differ"]
    assert set(files) == {*modules, stage2, agent}
    for name, module in (modules | {stage2: second}).items():
        assert_same_shapes(name, module.state_dict(), files[name])
    together = files[agent] | {f"llm.{key}": shape for key, shape in files[llm].items()}
    assert_same_shapes(agent, lvlm.state_dict(), together)
    check_lora_run(fixture.info["lora_run"], lvlm, files[agent], preset)


def assert_same_shapes(name, tensors, wanted):
    found = {key: list(tensor.shape) for key, tensor in tensors.items()}
    assert found == wanted, f"{name}: {sorted(set(found) ^ set(wanted))[:5]}"


def check_lora_run(run, lvlm, agent, preset):
    """Same names but for `base_layer`, as newer versions of peft say; the settings; and what is trained."""
    with torch.device("meta"):
        lvlm.add_lora(**preset.lora_kwargs)
    settings = lvlm.llm.peft_config["default"].to_dict()
    for key, wanted in run["lora_config"].items():
        found = sorted(settings[key]) if isinstance(wanted, list) else settings[key]
        assert found == (sorted(wanted) if isinstance(wanted, list) else wanted), key
    layers = range(preset.llm.num_hidden_layers)
    [repeated] = [shapes for key, shapes in run.items() if key.startswith("per_layer")]
    wanted = {key.replace("{i}", str(i)): shape for i in layers for key, shape in repeated.items()} | run["other"]
    renamed = {key.replace(".base_layer.", "."): tensor for key, tensor in lvlm.state_dict().items()}
    assert_same_shapes("lora_run", renamed, wanted | agent)
    trained = {key.replace("{i}", str(i)) for i in layers for key in run["trained"]["per_layer"]}
    trained |= {key for key in (*run["trained"]["other"], *agent) if not key.endswith("pos_embed") or "patch" in key}
    trained = {key for key in trained if ".original_module." not in key}  # gets no gradient there, is frozen here
    assert {key for key, parameter in lvlm.named_parameters() if parameter.requires_grad} == trained


def chain_of(fixture, count):
    """`<img>`, image tokens, `</img>`."""
    ids = fixture.info["token_ids"]
    return [ids["<img>"], *ids["<img_00000>.."][:count], ids["</img>"]]


def make_lvlm(fixture, **settings):
    config = {k: v for k, v in fixture.info["config"].items() if k not in ("vit_down", "mse")} | settings
    known = {f.name for f in dataclasses.fields(ContinuousLVLMConfig)}
    assert set(config) <= known, f"{fixture.name}: no check for {set(config) - known}"
    return fixture.load(ContinuousLVLM(ContinuousLVLMConfig(**config, official=True)))


@torch.enable_grad()
def check_lvlm_losses(fixture):
    found = {}
    for case, about in fixture.info["cases"].items():
        x = fixture.part(f"in/{case}/")
        assert ("image_embeds" in x, "patch_positions" in x) == (about["image_embeds"], about["patch_positions"])
        for name, loss in about["losses"].items():
            model = make_lvlm(fixture, mse=loss["mse"])
            if "image_embeds" in x:
                down = 4 if loss["vit_down"] else 1
                assert x["image_embeds"].shape[1] == down * len(model.output_resampler.query)  # pooled to these
            out = model(**x)
            out.loss.backward()
            losses = {"lm_loss": out.lm_loss, "rec_loss": out.rec_loss, "total_loss": out.loss}
            grads = {f"grad/{key}": parameter.grad for key, parameter in model.named_parameters()}
            assert None not in grads.values(), "a parameter without gradient stops training on several devices"
            found |= {f"{case}/{name}/{key}": tensor.detach() for key, tensor in (losses | grads).items()}
        hidden = out.last_hidden_state.detach() * x["attention_mask"][..., None]
        found |= {f"{case}/recon_image_embeds": out.image_embeds.detach(), f"{case}/last_hidden_state": hidden}
    fixture.compare(found)


def check_lvlm_generate(fixture):
    found = {}
    for case, about in fixture.info["cases"].items():
        chain, seen = chain_of(fixture, about["num_img_gen_tokens"]), []
        ids = dict(zip(("boi_token_id", "eoi_token_id"), (chain[0], chain[-1]), strict=True))
        model = make_lvlm(fixture, mse=fixture.info["config"]["mse"], image_token_ids=chain[1:-1], **ids)
        model.output_resampler.register_forward_pre_hook(lambda _module, inputs, seen=seen: seen.extend(inputs))
        x = fixture.part(f"in/{case}/")
        [answer] = model.generate(**x, max_new_tokens=about["max_new_tokens"])
        assert answer.sequence == about["new_ids"] and answer.text_ids == about["text_ids_returned"], case
        assert len(answer.pictures) == about["num_gen_imgs"] and bool(answer.pictures) == about["has_img_output"], case
        found[f"{case}/sequence"] = torch.cat([x["input_ids"][0], torch.tensor(answer.sequence)])
        if answer.pictures:
            found[f"{case}/img_gen_feat"] = torch.stack(answer.pictures)
            found[f"{case}/output_resampler_input"] = torch.cat(seen)
    fixture.compare(found)


def check_image_token_processor(fixture):
    chain = chain_of(fixture, fixture.info["config"]["num_img_gen_tokens"])
    assert chain == fixture.info["chain"]
    x = fixture.part("in/")
    before = x["scores"].clone()
    fixture.compare({"scores": ImageTokenProcessor(chain, official=True)(x["input_ids"], x["scores"])})
    assert torch.equal(x["scores"], before), "changed in place"


def make_layout(fixture, options, **settings):
    """Every option of the fixture is taken up or known to be a branch that the test forces."""
    names = {
        "num_img_in_tokens": "input_tokens",
        "num_img_out_tokens": "output_tokens",
        "instruction_prompt": "instruction",
        "resolution_grids": "grids",
    }
    branches = {"img_first_ratio", "prompt_drop_ratio", "use_polite_response", "add_gen_prompt", "patch_length"}
    branches |= {"use_caption_in_metadata", "caption_key_in_metadata", "assure_text", "multi_resolution"}
    given = {names.get(key, key): value for key, value in options.items() if key not in branches and value is not None}
    if "instruction_prompt" in options:
        given["instruction"] = options["instruction_prompt"] or "{instruction}"
    if not options.get("multi_resolution", True):
        given["grids"] = None
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    file = next(f for f in (fixture.path.with_name("tokenizer.json"), OWN / "tokenizer.json") if f.is_file())
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **special)
    return Layout(**{**given, "tokenizer": tokenizer, "official": True} | settings)


def check_sample(sample, wanted, layout, place):
    """Lists padded to the most, masks as 0 and 1; a lone picture that is not cut has its mask without a list."""
    batch = collate([sample], layout.tokenizer.pad_token_id, layout.max_length)
    single = layout.grids is None
    for key in ("input_ids", "labels", "attention_mask", "ids_cmp_mask", "ids_gen_mask"):
        assert batch[key][0].int().tolist() == wanted[key], f"{place}: {key}"
    for key in ("embeds_cmp_mask", "embeds_gen_mask"):
        found = batch[key].int().tolist()
        found = None if not found else found[0] if single else found
        assert found == wanted[key], f"{place}: {key}"
    if wanted.get("patch_position") is not None:
        positions = torch.tensor(wanted["patch_position"])
        assert torch.allclose(batch["patch_positions"], positions, rtol=0, atol=1e-6), place
        assert sample.patch_lengths == wanted["images_patch_length"], place
    assert len(sample.input_ids) == wanted["length"], place
    trained = [i for i, label in enumerate(sample.labels) if label != -100]
    assert trained == wanted["trained_positions"], place
    assert layout.tokenizer.convert_ids_to_tokens(sample.input_ids) == wanted["tokens"], place
    told = layout.tokenizer.convert_ids_to_tokens([sample.labels[i] for i in trained])
    assert told == wanted["trained_tokens"], place


def check_sft(fixture, folder):
    """Conversations and edits; those that the released decoder drops raise ValueError, unless it drops by mistake."""
    assert fixture.info["samples"]
    for case in fixture.info["samples"]:
        item, wanted, place = case["item"], case["result"], f"{fixture.name}: {case['id']}"
        layout = make_layout(fixture, case["options"])
        sizes = {name.lstrip("/"): tuple(size) for name, size in case["image_sizes"].items()}
        for name in sizes:
            folder.joinpath(name).touch()

        def lay_out(layout=layout, item=item, case=case, sizes=sizes):
            first = case.get("image_first", True)
            if case["function"] == "decode_llava_data":
                told = conversations.parse(item, folder)
                return layout.conversation(told.data, sizes[told.image.name] if told.image else None, first)
            assert case["function"] == "decode_single_turn_edit_data"
            told = edits.parse(item, folder)
            polite = case["options"]["use_polite_response"]
            response = told.response or (case.get("drawn_response", "") if polite else "")
            asked = "" if case.get("prompt_dropped") else told.instruction
            return layout.edit(asked, *(sizes[p.name] for p in (told.source_image, told.target_image)), response, first)

        if wanted is not None:
            check_sample(lay_out(), wanted, layout, place)
            assert case.get("kept_by_filter", True), place
        elif case.get("official_bug"):
            sample = lay_out()
            assert (sample.embeds_cmp_mask, sample.embeds_gen_mask) == ([True, False], [False, True]), place
        else:
            with pytest.raises(ValueError):
                lay_out()


def check_captions(fixture):
    """Both orders. The filter on the similarity of picture and caption, a column of LAION's tables, has no counterpart:
    its samples are laid out as any other."""
    assert fixture.info["samples"]
    for case in fixture.info["samples"]:
        options, place = case["options"], f"{fixture.name}: {case['id']}"
        first = {"image_first": case.get("image_first", case.get("drawn_image_first", False))}
        if case["function"].startswith("encode_caption_input_ids"):
            grids = [f"1x{options['patch_length'] - 1}"] if options.get("patch_length", 1) > 1 else None
            layout, size, text = make_layout(fixture, options, grids=grids), (56, 56), case["caption"]
            first = {"image_first": case["drawn_image_first"]}  # the layout finds out which are too long
        else:
            layout, size = make_layout(fixture, options), tuple(case["image_size"])
            text = case["txt"]
            if options["use_caption_in_metadata"]:
                text = case["metadata"][options["caption_key_in_metadata"]]
            if options["add_gen_prompt"]:
                first |= {"request": case["request"], "answer": case["polite_answer"]}
        too_small = not case.get("kept_by_filter", True) and "metadata" not in case
        if too_small:
            with pytest.raises(ValueError):
                layout.caption(text, size, **first)
        if case["result"] is None:
            assert too_small, place
        elif too_small:  # the released code goes on without a picture, one entry in each mask, and drops it later
            bare = dataclasses.replace(layout, min_resolution=0, min_aspect_ratio=0, grids=None)
            sample = dataclasses.replace(bare.caption(text, size, **first), patch_positions=[])
            check_sample(sample, case["result"], layout, place)
        else:
            check_sample(layout.caption(text, size, **first), case["result"], layout, place)


CHECKS = {
    "VisionTransformerWithAttnPool": check_vit,
    "Resampler": check_resampler,
    "ResamplerXLV2": check_resampler_xl,
    "SDXLAdapter": check_adapter,
    "SDXLAdapterWithLatentImage": lambda fixture: check_adapter(fixture, SDXLAdapterWithLatentImage),
    "SDXLAdapter.get_image_embeds": check_conditioning,
    "ContinuousLVLM.forward": check_lvlm_losses,
    "ContinuousLVLM.generate": check_lvlm_generate,
    "AutoImageTokenGenerationProcessor": check_image_token_processor,
    SFT: check_sft,
    CAPTIONS: check_captions,
    ANY_RES: check_any_res,
    "process_anyres_image": check_any_res_pixels,
    FULL_SIZE: check_full_size_keys,
}


@pytest.mark.parametrize("fixture", discover(), ids=lambda fixture: fixture.name)
@torch.no_grad()
def test_golden(fixture, tmp_path):
    """Guards against slips in arithmetic and parameter names: released weights would fail, or draw noise."""
    if fixture.symbol not in CHECKS:
        pytest.skip(f"not yet covered: {fixture.name} ({fixture.symbol})")
    check = CHECKS[fixture.symbol]
    check(fixture, tmp_path) if check is check_sft else check(fixture)


def test_fixtures_not_yet_covered():
    """Guards against a fixture that is skipped without anyone noticing."""
    fixtures = [Fixture(path) for path in sorted(OWN.glob("*.json"))]
    missing = {fixture.name for fixture in fixtures if fixture.is_fixture and fixture.symbol not in CHECKS}
    print("not yet covered:", *sorted(missing))
    assert missing == NOT_YET
