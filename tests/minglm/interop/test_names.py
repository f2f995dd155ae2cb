"""Names and layout on disk as the published checkpoints have them, without transformers."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from minglm.config import ModelConfig
from minglm.interop.compressed_tensors import write
from minglm.interop.huggingface import export_hf, hf_name
from minglm.model.model import Model
from minglm.quant.formats import Spec
from minglm.quant.modules import PackedExperts, PackedLinear, pack

# Ours → theirs. The MTP layer's names are those of DeepSeek-V3's and GLM-4.5's published files: one more layer after
# the last, whose last norm belongs to the head that it shares.
NAMES = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
    "layers.0.self_attn.kv_a_proj_with_mqa.weight": "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
    "layers.2.mlp.gate.e_score_correction_bias": "model.layers.2.mlp.gate.e_score_correction_bias",
    "mtp.enorm.weight": "model.layers.3.enorm.weight",
    "mtp.hnorm.weight": "model.layers.3.hnorm.weight",
    "mtp.eh_proj.weight": "model.layers.3.eh_proj.weight",
    "mtp.norm.weight": "model.layers.3.shared_head.norm.weight",
    "mtp.layer.input_layernorm.weight": "model.layers.3.input_layernorm.weight",
    "mtp.layer.mlp.shared_experts.up_proj.weight": "model.layers.3.mlp.shared_experts.up_proj.weight",
    "mtp.layer.self_attn.indexer.k_norm.bias": "model.layers.3.self_attn.indexer.k_norm.bias",
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model(ModelConfig.named("nano", initializer_range=0.15)).eval()


def test_names_are_the_published_ones(model):
    ours = model.state_dict()
    for name, theirs in NAMES.items():
        assert name in ours and hf_name(name, 3) == theirs


def test_tensors_on_disk_are_the_models_own(model, tmp_path):
    """Each tensor where its published name says, experts one by one, gate the upper half of the stack and up the
    lower."""
    ours, disk = model.state_dict(), load_file(export_hf(model, tmp_path / "hf") / "model.safetensors")
    assert all(torch.equal(ours[name], disk[theirs]) for name, theirs in NAMES.items())
    stack = ours["layers.1.mlp.experts.gate_up_proj"]
    width = stack.shape[1] // 2
    for e in (0, 5):
        at = f"model.layers.1.mlp.experts.{e}."
        assert torch.equal(disk[f"{at}gate_proj.weight"], stack[e, :width])
        assert torch.equal(disk[f"{at}up_proj.weight"], stack[e, width:])
        assert torch.equal(disk[f"{at}down_proj.weight"], ours["layers.1.mlp.experts.down_proj"][e])
    assert sum(t.numel() for t in disk.values()) == sum(t.numel() for t in ours.values())


@pytest.mark.parametrize("block", [16, 24, 48, 128])
def test_fp8_blocks_that_do_not_fit_are_written_multiplied_out(model, block, tmp_path):
    """A reader that takes a block's height for rows / rows of scales is right for every matrix that has scales, and
    what has none is listed as not converted and holds the rounded values."""
    packed = pack(copy.deepcopy(model), Spec("fp8", block=block))
    folder = write(packed, tmp_path / "hf")
    disk, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    listed = config["quantization_config"]["modules_to_not_convert"]
    assert config["quantization_config"]["weight_block_size"] == [block, block]
    matrices = {n: m.weight for n, m in packed.named_modules() if isinstance(m, PackedLinear)}
    for name, experts in packed.named_modules():
        if isinstance(experts, PackedExperts):
            stacks = {"gate_proj": experts.gate_up_proj[:, :32], "up_proj": experts.gate_up_proj[:, 32:]}
            stacks["down_proj"] = experts.down_proj
            matrices |= {f"{name}.{e}.{stack}": all_[e] for stack, all_ in stacks.items() for e in (0, 7)}
    found = set()
    for name, matrix in matrices.items():
        theirs = hf_name(f"{name}.weight", 3).removesuffix(".weight")
        values, scale = disk[f"{theirs}.weight"], disk.get(f"{theirs}.weight_scale_inv")
        fits = all(n % block == 0 or n <= block for n in matrix.shape)
        assert (scale is not None) == fits == (theirs not in listed), theirs
        found.add(fits)
        if scale is not None:
            high, wide = (n // blocks for n, blocks in zip(matrix.shape, scale.shape, strict=True))
            values = values.float() * scale.repeat_interleave(high, 0).repeat_interleave(wide, 1)
        assert torch.equal(values, matrix), theirs
    assert found == ({False} if block == 24 else {True, False})


@pytest.mark.parametrize("format", ["int4", "w4a8"])
def test_int4_words_hold_eight_codes_low_nibble_first(model, format, tmp_path):
    """Each int32 word taken apart by shifts: code + 8 in bits 4i … 4i + 3, times its group's scale."""
    packed = pack(copy.deepcopy(model), Spec(format, group=16))
    disk = load_file(write(packed, tmp_path / "hf") / "model.safetensors")
    experts = packed.get_submodule("layers.1.mlp.experts")
    for e, stack, want in ((2, "up_proj", experts.gate_up_proj[2, 32:]), (7, "down_proj", experts.down_proj[7])):
        at = f"model.layers.1.mlp.experts.{e}.{stack}"
        words = disk[f"{at}.weight_packed"].long()
        codes = torch.stack([(words >> 4 * i) & 15 for i in range(8)], -1).flatten(-2) - 8
        assert disk[f"{at}.weight_shape"].tolist() == list(want.shape) == list(codes.shape)
        assert torch.equal(codes.float() * disk[f"{at}.weight_scale"].float().repeat_interleave(16, -1), want)


def test_an_import_without_a_tokenizer_says_where_one_belongs_and_that_works(model, tmp_path, capsys):
    from minglm.cli.main import main
    from minglm.data.tokenizer import Tokenizer

    export_hf(model, tmp_path / "hf")
    run = tmp_path / "run"
    assert main(["import-hf", str(tmp_path / "hf"), str(run)]) == 0
    assert str(run / "tokenizer.json") in capsys.readouterr().out
    text = ["generate", "--checkpoint", str(run), "--prompt", "a", "--tokens", "2"]
    assert main(text) == 2 and "tokenizer.json" in capsys.readouterr().err
    Tokenizer.train(["a b a b"], 300).save(run / "tokenizer.json")
    assert main(text) == 0
