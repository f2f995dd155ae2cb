"""Number formats: exact where they promise it, bounded where they round, refusing what cannot be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from minglm.quant import compiled_codes, fp8, int4, int8
from minglm.quant.formats import FORMATS, Spec
from minglm.quant.fp8 import Fp8
from minglm.quant.int4 import Int4
from minglm.quant.int8 import Int8
from minglm.runtime import compiled
from minglm.runtime.switch import VARIABLE

torch.set_num_threads(1)


def weights(seed, *shape, spread=1.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g) * torch.exp(spread * torch.randn(*shape[:-1], 1, generator=g))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([2, 4, 8, 16, 32]), st.floats(0, 4), st.booleans())
def test_int4_packing_is_lossless_and_rounding_twice_changes_nothing(seed, group, spread, stacked):
    w = weights(seed, *((3,) if stacked else ()), 8, 64, spread=spread)
    codes, _scale = int4.encode(w, group)
    assert torch.equal(int4.unpack(int4.pack(codes)), codes)
    scheme = Int4(group)
    once = scheme.dequantize(*scheme.quantize(w))
    assert torch.equal(once, scheme.fake_quantize(w)), "inference and training round to the same bits"
    assert torch.equal(scheme.fake_quantize(once), once)
    assert codes.abs().amax() <= 7 and bool((codes.unflatten(-1, (-1, group)).abs().amax(-1) == 7).all())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0, 4))
def test_int4_error_is_at_most_half_a_step(seed, spread):
    w = weights(seed, 4, 64, spread=spread)
    scale = int4.encode(w, 16)[1].float().repeat_interleave(16, -1)
    # bf16 may round the scale down by 2^-9: then the largest weight, 7 steps away, is short by 7·2^-9 of a step more.
    assert bool(((Int4(16).fake_quantize(w) - w).abs() <= scale * (0.5 + 7 * 2**-8)).all())


def test_int4_takes_four_and_a_half_bits_a_weight_where_nothing_is_said():
    packed, scale = Int4().quantize(weights(0, 4, 64))
    assert 8 * (packed.nbytes + scale.nbytes) == 4.5 * 4 * 64  # a bf16 scale for 32 codes


def test_int4_known_values():
    w = torch.tensor([[7.0, -7.0, 3.4, 0.2, 0.0, 0.0, 0.0, 0.0]])
    packed, scale = Int4(4).quantize(w)
    assert scale.tolist() == [[1.0, 1.0]] and int4.unpack(packed).tolist() == [[7, -7, 3, 0, 0, 0, 0, 0]]
    assert packed.tolist() == [[(1 << 4) | 15, (8 << 4) | 11, 0x88, 0x88]]
    assert packed.dtype == torch.uint8 and packed.nbytes * 2 == w.numel()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 8, 16, 128]))
def test_fp8_blocks_cover_everything_and_err_within_e4m3(seed, rows, width, block):
    w = weights(seed, rows, width)
    values, scale = fp8.encode(w, block)
    assert values.shape == w.shape and scale.shape == (-(-rows // block), -(-width // block))
    got = fp8.expand(values, scale, block)
    per_value = scale.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :width]
    # 3 bits of mantissa: half a step is 2^-4 of the value; below the smallest normal number, 2^-10 of the scale.
    assert bool(((got - w).abs() <= torch.maximum(w.abs() * 2**-4, per_value * 2**-10) * 1.0001).all())
    assert torch.allclose(Fp8(block).fake_quantize(got), got, rtol=1e-6, atol=0)


def test_fp8_scale_is_published_convention():
    w = torch.zeros(4, 4)
    w[0, 0], w[2, 3] = 448.0, -896.0
    values, scale = fp8.encode(w, 2)
    assert scale.tolist() == [[1.0, 1.0], [1.0, 2.0]] and values.dtype == torch.float8_e4m3fn
    assert torch.equal(fp8.expand(values, scale, 2), w)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([2, 8, 32]), st.integers(1, 5))
def test_w4a8_is_integer_arithmetic(seed, group, tokens):
    x, w = weights(seed, tokens, 64), weights(seed + 1, 12, 64)
    codes, scale = int4.encode(w, group)
    got = int8.grouped_product(x, codes, scale)
    whole, x_scale = int8.encode(x)
    sums = torch.einsum(
        "ngi,ogi->nog", whole.long().unflatten(-1, (-1, group)), codes.long().unflatten(-1, (-1, group))
    )
    want = (sums.double() * scale.double()).sum(-1) * x_scale.double()
    assert torch.allclose(got.double(), want, rtol=1e-5, atol=1e-6 * float(want.abs().max()))
    # and the order of the inputs inside a group does not matter at all, which is not so for floating point
    order = torch.cat(
        [torch.randperm(group, generator=torch.Generator().manual_seed(seed)) + i for i in range(0, 64, group)]
    )
    assert torch.equal(got, int8.grouped_product(x[:, order], codes[:, order], scale))


def test_int8_sums_stay_exact_for_wide_rows():
    x, codes = torch.full((1, 4096), 127.0), torch.full((2, 4096), 127, dtype=torch.int8)
    got = int8.grouped_product(x, codes, torch.ones(2, 1))
    assert got.tolist() == [[127.0 * 127 * 4096] * 2]


@pytest.mark.parametrize("scheme", [Int4(16), Int4(16, int8_inputs=True), Int8(), Fp8(8), Fp8(8, fp8_inputs=False)])
def test_every_format_multiplies_nearly_like_its_weight(scheme):
    w, x = weights(0, 24, 64), weights(1, 2, 5, 64)
    parts = scheme.quantize(w)
    for (shape, dtype), tensor in zip(scheme.shapes(24, 64).values(), parts, strict=False):
        assert (shape, dtype) == (tuple(tensor.shape), tensor.dtype)
    got, want = scheme.linear(x, *parts), x @ scheme.dequantize(*parts).T
    assert got.shape == (2, 5, 24)
    exact = not getattr(scheme, "int8_inputs", False) and not getattr(scheme, "fp8_inputs", False)
    assert torch.equal(got, want) if exact else 0 < float((got - want).norm() / want.norm()) < 0.05
    zero = scheme.quantize(torch.zeros(24, 64))
    assert (
        torch.equal(scheme.linear(x, *zero), torch.zeros(2, 5, 24))
        and torch.isfinite(scheme.linear(torch.zeros(1, 64), *parts)).all()
    )


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Spec("int5"), "did you mean 'int4'"),
        (lambda: Spec("int4", group=3), "even whole number"),
        (lambda: Spec("int4", group=0), "even"),
        (lambda: Spec("fp8", block=0), "at least 1"),
        (lambda: Int4(48).fake_quantize(torch.ones(2, 64)), "divide the 64 inputs"),
        (lambda: Fp8(0), "at least 1"),
    ],
)
def test_bad_settings_are_one_line(make, says):
    with pytest.raises(InputError) as caught:
        make()
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_what_decides_by_rank_stays_in_high_precision(name):
    spec = Spec(name)
    for kept in (
        "layers.0.self_attn.indexer.wq_b.weight",
        "layers.1.mlp.gate.weight",
        "embed_tokens.weight",
        "lm_head.weight",
        "layers.0.input_layernorm.weight",
        "mtp.eh_proj.weight",
        "layers.1.mlp.gate.e_score_correction_bias",
    ):
        assert spec.scheme(kept) is None and spec.reason_kept(kept)
    for rounded in (
        "layers.0.self_attn.q_b_proj.weight",
        "layers.0.mlp.gate_proj.weight",
        "layers.1.mlp.experts.weight",
        "layers.1.mlp.shared_experts.down_proj.weight",
        "mtp.layer.mlp.shared_experts.up_proj.weight",
    ):
        assert spec.scheme(rounded, "experts.weight" in rounded) is not None


@pytest.mark.parametrize(("groups", "width"), [(1, 1040), (1, 2080), (2, 2080), (3, 1500), (5, 7)])
def test_cut_groups_keep_their_own_scale(groups, width):
    """Scales that differ a thousandfold, groups longer than 2^24 / 127² allows: whole numbers against Python's."""
    g = torch.Generator().manual_seed(groups * width)
    codes = torch.randint(-127, 128, (3, groups * width), generator=g, dtype=torch.int8)
    scale = 10.0 ** torch.linspace(-2, 3, 3 * groups).view(3, groups)
    x = torch.randn(2, groups * width, generator=g)
    want = torch.zeros(2, 3, dtype=torch.float64)
    for n in range(2):
        step = float(x[n].abs().max()) / 127
        whole = [round(v / step) for v in x[n].double().tolist()]
        for o in range(3):
            for k in range(groups):
                part = slice(k * width, (k + 1) * width)
                product = sum(a * b for a, b in zip(whole[part], codes[o, part].tolist(), strict=True))
                want[n, o] += float(scale[o, k]) * product * step
    got = int8.grouped_product(x, codes, scale)
    assert torch.allclose(got.double(), want, rtol=1e-4, atol=1e-6 * float(want.abs().max()))


def test_int8_rows_and_tokens_have_a_scale_each():
    """max|row| / 127 by hand; a row of zeros has scale 1 and stays zero."""
    w = torch.tensor([[1.0, -2.54, 0.5], [0.0, 0.0, 0.0], [127.0, 63.5, -1.0]])
    codes, scale = Int8().quantize(w)
    assert scale.flatten().tolist() == pytest.approx([0.02, 1.0, 1.0])
    assert codes.tolist() == [[50, -127, 25], [0, 0, 0], [127, 64, -1]]  # 63.5 goes to the even one
    assert torch.equal(Int8().dequantize(codes, scale), codes.float() * scale)


def test_fp8_activations_have_a_scale_for_each_tile_of_a_token():
    """A tile's largest value comes back exactly whatever stands beside it; the last tile is shorter."""
    x = torch.tensor([[448.0, 1.0, 3e-4, 2e-4, 7e4], [0.0, 0.0, -1.0, 0.5, 2.0]])
    got = fp8.round_activations(x, 2)
    assert got[0, [0, 1, 2, 4]].tolist() == pytest.approx([448.0, 1.0, 3e-4, 7e4], rel=1e-6)
    assert got[0, 3].item() == pytest.approx(2e-4, rel=2**-4) and got[1].tolist() == [0.0, 0.0, -1.0, 0.5, 2.0]
    far = fp8.round_activations(x, 5)
    assert far[0, 3].item() == 0, "negative control: one scale for the whole token loses it"


@pytest.mark.parametrize("width", [1040, 1041, 2080, 4096, 6250])
def test_pieces_are_short_enough_for_exact_sums(width, monkeypatch):
    """127·127 times the inputs of a piece stays below 2^24, in as few equal pieces as there can be."""
    seen, product = [], torch.bmm
    monkeypatch.setattr(int8.torch, "bmm", lambda a, b: seen.append(a.shape) or product(a, b))
    int8.grouped_product(torch.ones(1, 2 * width), torch.ones(1, 2 * width, dtype=torch.int8), torch.ones(1, 2))
    [(pieces, _, inputs)] = seen
    assert pieces * inputs == 2 * width and inputs * 127 * 127 < 2**24
    assert all(width % n or (width // n) * 127 * 127 >= 2**24 for n in range(1, pieces // 2))


def test_a_stack_of_experts_is_each_of_them_in_fp8():
    stack = torch.randn(3, 12, 20)
    stack[1] *= 50.0
    codes, scales = fp8.encode(stack, 8)
    for i, matrix in enumerate(stack):
        one, scale = fp8.encode(matrix, 8)
        assert torch.equal(codes[i].float(), one.float()) and torch.equal(scales[i], scale)


@pytest.mark.parametrize(
    "width, fits",
    [(24, "8 or 4 or 2"), (96, "32 or 16 or 8"), (20, "4 or 2"), (7, "another model"), (640, "128 or 64 or 32")],
)
def test_groups_that_do_not_divide_name_those_that_do(width, fits):
    with pytest.raises(InputError, match=f"use {fits}$"):
        int4.check_group(18, width)


def same_bits(ours, theirs):
    assert torch.equal(ours.isnan(), theirs.isnan()) and torch.equal(ours.nan_to_num(), theirs.nan_to_num())


@pytest.fixture
def both_paths(monkeypatch):
    """`both_paths(f)`: what `f()` gives by compiled code, and by the torch that is read."""
    if compiled.compiler() is None:
        pytest.skip("no C compiler here")

    def call(function):
        results = []
        for value in ("1", "0"):
            monkeypatch.setenv(VARIABLE, value)
            assert compiled_codes.fits() == (value == "1")
            results.append(function())
        return results

    return call


def test_compiled_codes_are_the_codes_taken_apart(both_paths):
    """All 256 of e4m3, and all pairs of four bits; blocks and groups that end inside a row; stacks of experts."""
    values = torch.arange(256, dtype=torch.uint8).view(2, 8, 16).view(torch.float8_e4m3fn)
    fp8_scale, packed = torch.rand(2, 2, 3), torch.arange(256, dtype=torch.uint8).view(2, 2, 64)
    scale = torch.rand(2, 2, 8).bfloat16()
    for ours, theirs in zip(
        *both_paths(
            lambda: (
                fp8.expand(values, fp8_scale, 7),
                fp8.expand(values[0].T, fp8_scale[0].T, 7),
                Int4(16).dequantize(packed, scale),
                Int4(16).dequantize(packed.transpose(0, 1), scale.transpose(0, 1)),
            )
        ),
        strict=True,
    ):
        same_bits(ours, theirs)


def test_compiled_rounding_is_that_of_torch(both_paths):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 200, generator=g) * torch.rand(300, 1, generator=g).mul(20).sub(10).exp()
    x[:, ::7] *= 1e-4  # below the smallest normal number of e4m3
    x[3], x[4, :128], x[5, 0], x[6, 150] = 0, 0, torch.nan, torch.inf
    halves = torch.arange(-448, 449).float().div(16).view(1, -1)  # ties among them, which go to the even neighbour
    for rows in (x, halves, 448 * torch.ones(1, 1), torch.empty(0, 8)):
        for ours, theirs in zip(
            *both_paths(lambda rows=rows: (fp8.round_activations(rows, 128), *int8.encode(rows))), strict=True
        ):
            same_bits(ours, theirs)


@pytest.mark.parametrize("rows", [1, 7])
def test_one_product_of_all_groups_is_the_groups_sum(rows, monkeypatch):
    torch.manual_seed(3)
    scheme = Int4(32, int8_inputs=True)
    parts, x = scheme.quantize(torch.randn(48, 256)), torch.randn(rows, 256)
    results = []
    for value in ("1", "0"):
        monkeypatch.setenv(VARIABLE, value)
        results.append(scheme.linear(x, *parts))
    whole, x_scale = int8.encode(x)
    exact = whole.double() @ scheme.dequantize(*parts).double().T * x_scale.double()
    for got in results:
        assert (got - exact).abs().max() < 2e-6 * exact.abs().max()
