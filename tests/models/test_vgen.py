"""Files in the layout of InstructVideo's release become a diffusers pipeline that computes the same."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rayvideo.errors import UserError
from rayvideo.models import ModelError, load_model, vgen, vgen_names
from rayvideo.models.lora import load_adapter
from rayvideo.weights import WeightsError
from tests import tiny
from tests.models import reference

HEAD_DIM = reference.SMALL.head_dim
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3}
VISION = {"image_size": 8, "patch_size": 8, "layers": 1, "width": 64, "head_width": 64}


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def spoiled(unet, **changes):
    return {name: tensor for name, tensor in (unet | changes).items() if tensor is not None}


@pytest.fixture(scope="module")
def network():
    """The reference's UNet with an adapter that does something."""
    torch.manual_seed(0)
    return reference.UNet(lora=True).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory, network):
    """unet.pth (with LoRA), vae.ckpt and text.bin in the release's layouts."""
    folder = tmp_path_factory.mktemp("release")
    torch.manual_seed(1)
    torch.save({"state_dict": network.state_dict(), "step": 620000}, folder / "unet.pth")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        latent_channels=4,
    )
    weights, sources = vae.state_dict(), vgen_names.vae_sources(vae)
    ldm = {source.name: weights[name].reshape(source.shape(weights[name].shape)) for name, source in sources.items()}
    unused = {"model.diffusion_model.out.0.weight": torch.zeros(2), "alphas_cumprod": torch.zeros(2)}
    torch.save({"state_dict": ldm | unused, "global_step": 1}, folder / "vae.ckpt")
    torch.save(open_clip.CLIP(embed_dim=32, vision_cfg=VISION, text_cfg=TEXT).state_dict(), folder / "text.bin")
    return folder


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "model"
    names = vgen.convert(
        unet=files / "unet.pth", vae=files / "vae.ckpt", text=files / "text.bin", out=out, head_dim=HEAD_DIM
    )
    assert names == sorted(["adapter", "model_index.json", *vgen.PIPELINE])
    return out


# ---- the full-size models, without their data


@pytest.mark.parametrize(("lora", "count"), [(False, 1480), (True, 2008)])
def test_the_release_has_these_tensors(lora, count):
    with torch.device("meta"):
        theirs = reference.UNet(reference.RELEASE, lora).state_dict()
        unet = UNet3DConditionModel(**vgen.unet_config(theirs, "release.pth", 64))
        default = UNet3DConditionModel()
    assert shapes(unet.state_dict()) == shapes(default.state_dict())
    expected = vgen_names.expected(unet.state_dict(), vgen_names.unet_sources(unet))
    if lora:
        names, blank = vgen.lora_layout(unet, 4)
        assert sum(tensor.numel() for tensor in blank.values()) == 1_661_440
        expected |= {names[ours]: blank[ours] for ours in names}
    assert len(expected) == count
    assert shapes(expected) == shapes(theirs)


def test_the_release_vae_has_248_tensors_which_diffusers_reads_alike():
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    file = vgen_names.expected(vae.state_dict(), vgen_names.vae_sources(vae))
    assert len(file) == 248
    assert shapes(convert_ldm_vae_checkpoint(file, vae.config)) == shapes(vae.state_dict())


def test_the_release_text_tower_is_vit_h_14():
    config = open_clip.get_model_config("ViT-H-14")
    with torch.device("meta"):
        theirs = open_clip.CLIP(**config).state_dict()
        ours = CLIPTextModel(
            CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
        ).state_dict()
    tower = {name: tensor for name, tensor in theirs.items() if not name.startswith(vgen.OPEN_CLIP_REST)}
    assert shapes(vgen_names.expected(ours, vgen_names.text_sources(ours))) == shapes(tower)


# ---- the same numbers


@torch.no_grad()
def test_base_and_tuned_unet_compute_what_the_reference_does(network, converted):
    latents, times, text = torch.randn(2, 4, 3, 8, 8), torch.tensor([551, 1]), torch.randn(2, 5, 24)
    base = reference.UNet().eval()
    base.load_state_dict({name: w for name, w in network.state_dict().items() if "_lora." not in name})
    ours = UNet3DConditionModel.from_pretrained(converted / "unet")
    torch.testing.assert_close(ours(latents, times, text).sample, base(latents, times, text), atol=2e-5, rtol=1e-4)
    wanted = network(latents, times, text)
    assert (wanted - base(latents, times, text)).abs().max() > 0.1
    tuned = load_adapter(ours, converted / "adapter")
    torch.testing.assert_close(tuned(latents, times, text).sample, wanted, atol=2e-5, rtol=1e-4)


def test_the_vae_is_the_one_that_diffusers_makes_of_the_file(files, converted):
    ours = AutoencoderKL.from_pretrained(converted / "vae")
    assert ours.config.scaling_factor == 0.18215
    theirs = convert_ldm_vae_checkpoint(torch.load(files / "vae.ckpt")["state_dict"], ours.config)
    assert theirs.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())


@torch.no_grad()
def test_the_text_tower_stops_before_its_last_layer_as_the_reference_does(files, converted):
    clip = open_clip.CLIP(embed_dim=32, vision_cfg=VISION, text_cfg=TEXT)
    clip.load_state_dict(torch.load(files / "text.bin"))
    prompts = ["a red cat, running at 12:30", "", "ein Fuchs 🦊 im Café " * 20]
    x = clip.token_embedding(open_clip.tokenize(prompts)) + clip.positional_embedding
    for block in clip.transformer.resblocks[:-1]:
        x = block(x, attn_mask=clip.attn_mask)
    ours = load_model(converted, parts=["text"]).encode_prompts(prompts)
    torch.testing.assert_close(ours, clip.ln_final(x), atol=2e-5, rtol=1e-4)


def test_the_folder_is_a_whole_model_with_the_reference_schedule(converted):
    model = load_model(converted)
    schedule = DDIMScheduler(**tiny.REFERENCE_SCHEDULE)
    assert torch.equal(model.scheduler.alphas_cumprod, schedule.alphas_cumprod)
    assert {key: model.scheduler.config[key] for key in tiny.REFERENCE_SCHEDULE} == tiny.REFERENCE_SCHEDULE
    assert model.latent_shape(16, 32, 32) == (4, 16, 8, 8)


# ---- other files that are right


def test_a_bare_state_dict_without_lora_in_either_format(network, tmp_path):
    base = {name: tensor for name, tensor in network.state_dict().items() if "_lora." not in name}
    torch.save(base, tmp_path / "base.pth")
    torch.save(base, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(base, tmp_path / "base.safetensors")
    read = [vgen.read_unet(tmp_path / name, HEAD_DIM) for name in ("base.pth", "old.pth", "base.safetensors")]
    assert all(lora is None for _, lora in read)
    first, *others = (unet.state_dict() for unet, _ in read)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    with pytest.raises(ModelError, match="holds no LoRA"):
        vgen.convert(unet=tmp_path / "base.pth", out=tmp_path / "out", head_dim=HEAD_DIM, require_lora=True)
    assert vgen.convert(unet=tmp_path / "base.pth", out=tmp_path / "out", head_dim=HEAD_DIM) == ["scheduler", "unet"]


def test_weights_keep_their_number_format(network, tmp_path):
    torch.save({name: tensor.half() for name, tensor in network.state_dict().items()}, tmp_path / "half.pth")
    vgen.convert(unet=tmp_path / "half.pth", out=tmp_path / "out", head_dim=HEAD_DIM)
    for file in ("unet/diffusion_pytorch_model.safetensors", "adapter/adapter_model.safetensors"):
        assert {tensor.dtype for tensor in load_file(tmp_path / "out" / file).values()} == {torch.float16}


def test_a_tokenizer_may_be_given_but_must_fit(converted, files, tmp_path):
    given = {"unet": files / "unet.pth", "text": files / "text.bin", "head_dim": HEAD_DIM}
    vgen.convert(**given, tokenizer=converted / "tokenizer", out=tmp_path / "out")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert tokenizer.pad_token_id == 0
    assert tokenizer("wow!").input_ids == [49406, *tokenizer("wow").input_ids[1:-1], 0, 49407]
    assert not (tmp_path / "out" / "model_index.json").exists()  # the VAE is lacking
    tiny.build_tokenizer().save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match="knows 190 tokens, the text tower 49408"):
        vgen.convert(**given, tokenizer=tmp_path / "small", out=tmp_path / "other")


def test_a_tower_with_another_vocabulary_gets_no_invented_tokenizer(files, tmp_path):
    tower = torch.load(files / "text.bin")
    torch.save(tower | {"token_embedding.weight": torch.zeros(100, 64)}, tmp_path / "text.bin")
    given = {"unet": files / "unet.pth", "vae": files / "vae.ckpt", "head_dim": HEAD_DIM}
    names = vgen.convert(**given, text=tmp_path / "text.bin", out=tmp_path / "out")
    assert names == ["adapter", "scheduler", "text_encoder", "unet", "vae"]


# ---- files that are wrong

FIRST = "input_blocks.0.0.weight"
DEEP = "output_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"
LORA = "middle_block.1.transformer_blocks.0.attn1.to_q_lora.up_linear.weight"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fps_embedding.0.weight": torch.zeros(2)}, r"1 unknown \(fps_embedding.0.weight\)"),
        ({DEEP: None}, rf"1 missing \({DEEP}\)"),
        ({FIRST: None}, rf"1 missing \({FIRST}\)"),
        ({LORA: None}, rf"1 missing \({LORA}\)"),
        ({DEEP: torch.zeros(32, 7)}, rf"1 of another shape \({DEEP} \[32, 7\] in place of \[32, 24\]\)"),
        ({FIRST: torch.zeros(31, 4, 3, 3)}, rf"1 of another shape \({FIRST} \[31, 4, 3, 3\]"),
        ({"time_embed.0.bias": torch.tensor(0.0)}, r"1 of another shape \(time_embed.0.bias \[\] in place of \[128\]"),
        ({LORA: torch.zeros(64, 5)}, rf"1 of another shape \({LORA} \[64, 5\] in place of \[64, 4\]\)"),
        (
            {"a": torch.zeros(1), "b": torch.zeros(1), DEEP: None},
            rf"of 886 tensors, 1 missing \({DEEP}\); 2 unknown \(a, b\)",
        ),
        ({f"x{i}": torch.zeros(1) for i in range(9)}, r"9 unknown \(x0, x1, x2, x3, x4, …\)"),
    ],
)
def test_a_unet_that_is_not_exactly_the_reference_is_refused(network, tmp_path, changes, said):
    torch.save({"state_dict": spoiled(network.state_dict(), **changes)}, tmp_path / "unet.pth")
    with pytest.raises(WeightsError, match=rf"unet.pth as VGen's UNet with LoRA: .*{said}"):
        vgen.read_unet(tmp_path / "unet.pth", HEAD_DIM)


def test_a_vae_without_levels_is_refused(files, tmp_path):
    content = torch.load(files / "vae.ckpt")["state_dict"]
    torch.save({name: tensor for name, tensor in content.items() if ".down." not in name}, tmp_path / "vae.ckpt")
    with pytest.raises(ModelError, match="vae.ckpt"):
        vgen.read_vae(tmp_path / "vae.ckpt")


def test_heads_of_another_width_need_to_be_told(files):
    with pytest.raises(ModelError, match="heads of 0 .*--head-dim"):
        vgen.read_unet(files / "unet.pth", 0)
    with pytest.raises(ModelError, match="width 32 does not divide into heads of 64 .*--head-dim"):
        vgen.read_unet(files / "unet.pth")
    with pytest.raises(ModelError, match="128 wide, 8 heads of 8 are 64.*--head-dim"):
        vgen.read_unet(files / "unet.pth", 8)


@pytest.mark.parametrize(
    ("part", "file", "said"),
    [
        ("unet", "vae.ckpt", "is not a VGen UNet"),
        ("unet", "text.bin", "is not a VGen UNet"),
        ("vae", "unet.pth", r"not a Stable Diffusion checkpoint with first_stage_model\.\*"),
        ("text", "vae.ckpt", "is not an OpenCLIP model"),
    ],
)
def test_a_file_of_another_kind_is_refused_and_nothing_is_written(files, tmp_path, part, file, said):
    given = {"unet": files / "unet.pth", "head_dim": HEAD_DIM} | {part: files / file}
    with pytest.raises(ModelError, match=f"{file}.*{said}"):
        vgen.convert(**given, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["vae", "text"])
def test_a_vae_or_text_tower_that_lacks_a_tensor_is_refused(files, tmp_path, part):
    file, name = {
        "vae": ("vae.ckpt", "first_stage_model.encoder.down.1.downsample.conv.bias"),
        "text": ("text.bin", "transformer.resblocks.2.attn.in_proj_bias"),  # of the layer that is left out
    }[part]
    content = torch.load(files / file)
    tensors = content.get("state_dict", content)
    tensors.pop(name)
    torch.save(tensors, tmp_path / file)
    with pytest.raises(WeightsError, match=rf"1 missing \({name}\)"):
        vgen.convert(unet=files / "unet.pth", **{part: tmp_path / file}, out=tmp_path / "out", head_dim=HEAD_DIM)


def test_an_existing_folder_is_not_overwritten(files, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        vgen.convert(unet=files / "unet.pth", out=tmp_path / "out", head_dim=HEAD_DIM)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_the_index_names_the_classes(converted):
    index = json.loads((converted / "model_index.json").read_text())
    assert index["_class_name"] == "TextToVideoSDPipeline"
    assert {name: tuple(index[name]) for name in vgen.PIPELINE} == vgen.PIPELINE
