"""Quantised models: training and inference see the same bits; checkpoints and the command; bad files in one line."""

import copy
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from minglm.cli.main import main
from minglm.config import ModelConfig
from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError
from minglm.evals import quantization
from minglm.inference import load
from minglm.inference.decoder import Decoder
from minglm.inference.generate import generate
from minglm.model.cache import LatentCache
from minglm.model.model import Model
from minglm.quant import checkpoint as store
from minglm.quant.formats import Spec
from minglm.quant.modules import PackedExperts, PackedLinear, pack
from minglm.quant.qat import FakeQuant
from minglm.training import checkpoint

torch.set_num_threads(1)
SPECS = {"int4": Spec("int4", group=16), "fp8": Spec("fp8", block=16), "w4a8": Spec("w4a8", group=16)}
VARIANTS = {
    "plain": {},
    "no-mtp": {"num_nextn_predict_layers": 0},
    "shared-indexer": {"indexer_types": ("full", "shared", "full")},
    "no-shared-expert": {"n_shared_experts": 0},
    "all-dense": {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0},
}
TOKENS = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(3))


def make(seed=0, **changes):
    torch.manual_seed(seed)
    model = Model(ModelConfig.named("nano", **{"initializer_range": 0.1, **changes})).eval()
    for b in model.buffers():
        b.normal_(0, 0.1)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["def f(x):\n    return x + 1\n", "The code of Alpha is tidy raven.\n"] * 20, 320)


@pytest.fixture
def run(tmp_path, tokenizer):
    """A run folder with one checkpoint of a nano model."""
    model = make()
    checkpoint.save(tmp_path / "run", 3, model.config, model.state_dict(), {}, {"recipe": None})
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    return tmp_path / "run"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_training_and_inference_give_the_same_logits_bit_for_bit(variant, mode):
    model, spec = make(**VARIANTS[variant]), SPECS["int4"]
    packed = pack(copy.deepcopy(model), spec)
    with FakeQuant(model, spec):
        train = model(TOKENS, mode=mode).logits  # with gradients, as a training step runs it
        with torch.no_grad():
            evaluate = model(TOKENS, mode=mode).logits
    assert train.requires_grad
    assert torch.equal(train, packed(TOKENS, mode=mode).logits)
    with torch.no_grad():
        assert torch.equal(evaluate, packed(TOKENS, mode=mode).logits)
        assert not torch.equal(evaluate, model(TOKENS, mode=mode).logits), "rounding must change something"


@pytest.mark.parametrize(
    "spec",
    [
        Spec("fp8", block=24),
        Spec("fp8", block=48),
        Spec("fp8", block=16),
        Spec("w4a8", group=16),
        Spec("int4", group=8),
    ],
    ids=repr,
)
def test_training_rounds_every_matrix_to_the_bits_of_inference(spec):
    """Blocks of 24 and 48 do not divide an expert's width of 32: gate and up must not share one."""
    model = make(initializer_range=0.3)
    packed = pack(copy.deepcopy(model), spec)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    rounded = set()
    with FakeQuant(model, spec):
        for name, module in packed.named_modules():
            if isinstance(module, PackedLinear):
                names = {"weight": module.weight}
            elif isinstance(module, PackedExperts):
                names = {"gate_up_proj": module.gate_up_proj, "down_proj": module.down_proj}
            else:
                continue
            for own, want in names.items():
                assert torch.equal(model.get_parameter(f"{name}.{own}"), want), name
                rounded.add(f"{name}.{own}")
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) != (name in rounded), name
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_so_do_the_losses_that_training_reports():
    model, spec = make(), SPECS["int4"]
    packed = pack(copy.deepcopy(model), spec)
    with FakeQuant(model, spec):
        ours = model(TOKENS, TOKENS.roll(-1, 1))
    theirs = packed(TOKENS, TOKENS.roll(-1, 1))
    for part in ("lm_loss", "mtp_loss", "balance_loss", "indexer_kl"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part)), part


def test_the_gradient_passes_straight_through_to_the_master_weights():
    model, spec = make(), SPECS["int4"]
    masters = {n: p.detach().clone() for n, p in model.named_parameters()}
    rounding = FakeQuant(model, spec)
    rounding.on()
    rounding.on()  # a second call must not take rounded weights for masters
    rounded = copy.deepcopy(model)
    model(TOKENS, TOKENS.roll(-1, 1)).lm_loss.backward()
    rounding.off()
    rounded(TOKENS, TOKENS.roll(-1, 1)).lm_loss.backward()  # an ordinary model that has the rounded weights
    for (name, p), q in zip(model.named_parameters(), rounded.parameters(), strict=True):
        assert torch.equal(p, masters[name]), name
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad), name


def test_qat_trains_resumes_and_costs_less_than_rounding_afterwards():
    """A tiny memorised batch: training with the rounding ends with a lower rounded loss than training without it."""
    spec, end = Spec("int4", group=16), {}
    for name in ("plain", "qat"):
        model = make(seed=1).train()
        rounding, optimizer = (
            FakeQuant(model, spec if name == "qat" else None),
            torch.optim.Adam(model.parameters(), 3e-3),
        )
        for _ in range(40):
            optimizer.zero_grad()
            with rounding:
                model(TOKENS, TOKENS.roll(-1, 1), mtp=False, indexer_loss=False).lm_loss.backward()
            optimizer.step()
        with torch.no_grad():
            end[name] = float(pack(model, spec)(TOKENS, TOKENS.roll(-1, 1), mtp=False).lm_loss)
    assert end["qat"] < end["plain"]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_models_come_close_and_weigh_what_the_format_says(name, variant):
    model, spec = make(**VARIANTS[variant]), SPECS[name]
    packed = pack(copy.deepcopy(model), spec)
    with torch.no_grad():
        ours, theirs = model(TOKENS, mode="dense").logits, packed(TOKENS, mode="dense").logits
    assert (
        0 < float((ours - theirs).norm() / ours.norm()) < 0.75
    )  # unrelated logits differ by 1.4; a changed expert by much
    before, after = quantization.sizes(model), quantization.sizes(packed)
    assert before["weights"] == after["weights"] and before["bits_per_weight"] == 32
    if name == "int4":
        assert after["quantised_bits_per_weight"] == 4 + 16 / 16
    assert after["bytes"] < before["bytes"]
    assert quantization.projected_bytes(model.config, spec, bytes_per_value=4) == after["bytes"]
    assert quantization.projected_bytes(model.config, None, bytes_per_value=4) == before["bytes"]
    kept = [n for n, m in packed.named_modules() if isinstance(m, torch.nn.Linear)]
    assert all("indexer" in n or n in ("lm_head", "mtp.eh_proj") or (name == "w4a8" and "kv_b_proj" in n) for n in kept)


@pytest.mark.parametrize("name", SPECS)
def test_a_checkpoint_comes_back_bit_for_bit(name, tmp_path, tokenizer):
    packed = pack(make(), SPECS[name])
    folder = store.save(packed, tokenizer, tmp_path / "q", "runs/x")
    again, _, note = store.load(folder)
    assert note["spec"] == SPECS[name] and note["made_from"] == "runs/x"
    with torch.no_grad():
        assert torch.equal(packed(TOKENS).logits, again(TOKENS).logits)
    assert not any(p.requires_grad for p in again.parameters())
    through, _, _found = load.load_model(folder)  # what `minglm generate --checkpoint` calls
    assert isinstance(through.layers[0].self_attn.q_a_proj, PackedLinear) and isinstance(
        through.layers[1].mlp.experts, PackedExperts
    )
    store.save(packed, tokenizer, folder)  # the same folder again is allowed


@pytest.mark.parametrize("name", SPECS)
def test_the_command_quantises_and_generate_reads_it(name, run, tmp_path, capsys):
    options = {"fp8": ["--block", "16"]}.get(name, ["--group", "16"])
    assert main(["quantize", str(run), "--format", name, "--out", str(tmp_path / "q"), *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["after"]["bytes"] < report["before"]["bytes"] and report["format"] == name
    assert main(["generate", "--checkpoint", str(tmp_path / "q"), "--prompt", "def", "--tokens", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) <= 3
    assert main(["quantize", str(tmp_path / "q"), "--format", name, "--out", str(tmp_path / "r")]) == 2
    assert "already quantised" in capsys.readouterr().err
    assert main(["quantize", str(run), "--format", name, "--out", str(tmp_path / "t"), *options]) == 0
    out = capsys.readouterr().out
    assert "bits per weight" in out and "indexer" in out and "router" in out


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--format", "int5"], "did you mean 'int4'"),
        (["--format", "int4", "--group", "48"], "divide the"),
        (["--format", "int4"], "group=32"),
        (["--format", "int4", "--group", "7"], "even"),
        (["--format", "fp8", "--block", "0"], "at least 1"),
        (["--format", "fp8", "--eval", "--questions", "0"], "at least 1"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(arguments, says, run, tmp_path, capsys):
    assert main(["quantize", str(run), "--out", str(tmp_path / "q"), *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and not (tmp_path / "q").exists()


def test_a_folder_that_holds_something_else_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    assert main(["quantize", str(run), "--format", "int4", "--group", "16", "--out", str(tmp_path / "mine")]) == 2
    assert "not empty" in capsys.readouterr().err and (tmp_path / "mine" / "notes.txt").read_text() == "x"
    assert main(["train", "ci_sft", "--init-from", str(_saved(tmp_path)), "--run", str(tmp_path / "again")]) == 2
    assert "quantised weights, which cannot be trained" in capsys.readouterr().err


def _saved(tmp_path, spec=SPECS["int4"]):
    return store.save(pack(make(), spec), Tokenizer.train(["a b c"] * 9, 300), tmp_path / "saved")


SCALE, PACKED = "layers.0.self_attn.q_a_proj.scale", "layers.1.mlp.experts.up_proj_packed"


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda t: t[SCALE].view(-1).__setitem__(5, float("nan")), "positive finite number"),
        (lambda t: t[SCALE].view(-1).__setitem__(0, 0.0), "is 0.0"),
        (lambda t: t[SCALE].view(-1).__setitem__(0, -1.0), "is -1.0"),
        (lambda t: t[SCALE].view(-1).__setitem__(0, float("inf")), "inf"),
        (lambda t: t[PACKED].view(-1).__setitem__(0, 0x0F), "code -8"),
        (lambda t: t.pop(SCALE), "is missing"),
        (lambda t: t.__setitem__(SCALE, t[SCALE][:, :1].contiguous()), "calls for"),
        (lambda t: t.__setitem__("extra", torch.ones(1)), "no place"),
        (
            lambda t: t[PACKED].view(-1).__setitem__(0, 0x99 if t[PACKED].view(-1)[0] != 0x99 else 0xAA),
            "hash does not fit",
        ),
    ],
)
def test_damaged_tensors_are_named(damage, says, tmp_path):
    folder = _saved(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError) as caught:
        store.load(folder)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_files_are_named(tmp_path):
    folder = _saved(tmp_path)
    note = (folder / "quantization.json").read_text()
    for text, says in (
        ("{", "damaged"),
        (note.replace('"int4"', '"int3"'), "damaged"),
        (note.replace("minglm-quantized-1", "x"), "damaged"),
    ):
        (folder / "quantization.json").write_text(text)
        with pytest.raises(InputError, match=says):
            store.load(folder)
    (folder / "quantization.json").write_text(note)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="not readable as safetensors"):
        store.load(folder)
    file.unlink()
    with pytest.raises(InputError, match="missing"):
        store.load(folder)


def test_quantising_twice_is_refused_everywhere():
    packed = pack(make(), SPECS["int4"])
    for call in (lambda: pack(packed, SPECS["fp8"]), lambda: FakeQuant(packed, SPECS["int4"])):
        with pytest.raises(InputError, match="already quantised"):
            call()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(
    "prompts", [TOKENS[:, :30].tolist(), [TOKENS[0, :9].tolist(), TOKENS[1, :33].tolist()]], ids=["even", "ragged"]
)
def test_decoding_rounds_activations_as_a_forward_does(name, prompts):
    """Activations are rounded in steps too: log-probabilities of a generation equal those of one forward over it.

    In fp64, because rounding to a few bits turns a difference in the last bit of fp32 into a whole step.
    """
    packed = pack(make(), SPECS[name])
    packed = packed.double() if SPECS[name].rounds_activations else packed
    out = generate(packed, prompts, 6)
    for prompt, tokens, got in zip(prompts, out.tokens, out.logprobs, strict=True):
        want = quantization.logprobs(packed, torch.tensor([prompt + tokens]))[0, len(prompt) - 1 :]
        assert torch.allclose(torch.tensor(got), want.float(), atol=1e-4), (got, want.tolist())
    unrounded = pack(make(), dataclasses.replace(SPECS[name], activations=False))
    other = quantization.logprobs(unrounded, torch.tensor([prompt + tokens]))[0, len(prompt) - 1 :]
    assert (name == "int4") == bool(torch.allclose(other.float(), want.float(), atol=1e-4)), (
        "the comparison must tell rounding from none"
    )
    if SPECS[name].rounds_activations:
        with pytest.raises(InputError, match="record_routes"):
            Decoder(packed, LatentCache(packed.config, 1, 8), record_routes=True)


def test_rollout_mismatch_is_zero_against_itself_and_small_against_fp8():
    model = make()
    prompts = TOKENS[:, :12].tolist()
    same = quantization.rollout_mismatch(model, model, prompts, new_tokens=8)
    assert same["tokens"] == 16 and same["mean_abs_log_ratio"] < 1e-5 and same["masked_share"] == 0
    fp8 = quantization.rollout_mismatch(model, pack(copy.deepcopy(model), SPECS["fp8"]), prompts, new_tokens=8)
    assert 1e-4 < fp8["mean_abs_log_ratio"] < 1 and fp8["largest_ratio"] >= 1 and fp8["kl"] >= 0
