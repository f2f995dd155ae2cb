"""transformers loads what `write` writes and computes the same: multiplied out always; fp8 and int4 where its own needs
are installed."""

import copy

import pytest
import torch

from minglm.cli.main import main
from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.interop.compressed_tensors import write
from minglm.interop.huggingface import export_hf
from minglm.model.model import Model
from minglm.quant.formats import Spec
from minglm.quant.modules import pack

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
TOKENS = torch.randint(0, 512, (2, 80), generator=torch.Generator().manual_seed(5))
SPECS = {
    "int4": Spec("int4", 16),
    "fp8": Spec("fp8", block=16, activations=False),
    "fp8-ragged": Spec("fp8", block=24, activations=False),
    "w4a8": Spec("w4a8", 16, activations=False),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model(ModelConfig.named("nano", initializer_range=0.15, index_n_heads=16)).eval()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "quantised"])
def test_logits_are_the_same(name, plain, model, tmp_path):
    options = {}
    if not plain:
        pytest.importorskip("accelerate", reason="transformers wants accelerate to load FP8")
        if not name.startswith("fp8"):
            pytest.importorskip("compressed_tensors", reason="transformers wants compressed-tensors to load INT4")
            options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    packed = pack(copy.deepcopy(model), SPECS[name])
    folder = write(packed, tmp_path / "hf", plain)
    theirs, report = transformers.GlmMoeDsaForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True, **options
    )
    assert not report["missing_keys"] and all(".3." in key for key in report["unexpected_keys"]), (
        "only the MTP layer has no place there"
    )
    with torch.no_grad():
        ours, theirs, before = packed(TOKENS).logits, theirs.eval()(TOKENS).logits, model(TOKENS).logits
    assert (ours - theirs).abs().max() <= 1e-4 < (ours - before).abs().max()


def test_a_quantised_file_is_smaller(model, tmp_path):
    size = {
        name: write(pack(copy.deepcopy(model), spec), tmp_path / name).joinpath("model.safetensors").stat().st_size
        for name, spec in SPECS.items()
    }
    full = export_hf(model, tmp_path / "full").joinpath("model.safetensors").stat().st_size
    assert size["int4"] < size["w4a8"] < full and size["fp8"] < full


def test_what_cannot_be_written_is_one_line(model, tmp_path, capsys):
    with pytest.raises(InputError, match="export-hf"):
        write(model, tmp_path / "x")
    packed = pack(copy.deepcopy(model), SPECS["int4"])
    with pytest.raises(InputError, match="quantised"):
        export_hf(packed, tmp_path / "y")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "other.txt").write_text("x")
    with pytest.raises(InputError, match="carries no minglm-run.json"):
        write(packed, tmp_path / "z")
    assert main(["quantize", str(tmp_path / "none"), "--format", "fp8", "--out", str(tmp_path / "q")]) == 2
    assert "no checkpoint" in capsys.readouterr().err
