"""Small cases by hand: the time line of two requests, admission by final context, the busiest chip's experts."""

import dataclasses

import pytest

from minglm.errors import InputError
from sim.serving.deployment import Deployment
from sim.serving.memory import chip_memory
from sim.serving.operators import CONSTANTS, Roof, experts, measured_decode_layer
from sim.serving.simulate import Fleet, simulate
from sim.serving.step_time import decode_step, flops_per_token, prefill, score_flops_per_token
from sim.serving.workload import RequestLengths, ServingWorkload


class Fixed:
    """Each prompt takes `prefill` seconds, each step `step` seconds; a step yields one token."""

    tokens_per_step = 1.0

    def __init__(self, prefill, step):
        self.prefill, self.step = prefill, step

    def decode_s(self, active, context):
        return self.step

    def prefill_s(self, prompts, prompt, cached):
        return self.prefill * prompts


D = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")


@pytest.mark.parametrize("output", [2, 3, 11])
def test_a_stream_of_n_tokens_has_n_minus_one_waits_between_them(output):
    """Alone: the first token at 0.3 s, then one every 0.02 s. TPOT is what a reader waits between two tokens."""
    clock = Fixed(prefill=0.3, step=0.02)
    work = ServingWorkload(rate_per_s=0.5, requests=20, prompt=100, output=output, arrivals="even")
    r = simulate(Fleet(decode=D), work, clocks=(clock, clock))
    assert r.ttft_s["p50"] == pytest.approx(0.3)
    assert r.tpot_s["p50"] == pytest.approx(0.02) and r.tpot_s["mean"] == pytest.approx(0.02)
    assert r.e2e_s["p50"] == pytest.approx(0.3 + (output - 1) * 0.02)


def test_an_answer_of_one_token_has_no_time_between_tokens():
    clock = Fixed(prefill=0.3, step=0.02)
    work = ServingWorkload(rate_per_s=0.5, requests=20, prompt=100, output=1, arrivals="even")
    r = simulate(Fleet(decode=D), work, clocks=(clock, clock))
    assert r.tpot_s["mean"] == 0.0 and r.e2e_s == r.ttft_s and r.steps == 0


def test_a_prompt_that_comes_while_another_decodes_holds_it_up_once():
    """Requests every 0.1 s, prefill 0.05 s, step 0.03 s, three tokens each, one instance that does both.

    The first: prefill from 0.10 to its first token at 0.15, steps to 0.18 and 0.21, done. The second came at 0.20,
    in the middle of a step: admitted at 0.21, first token at 0.26, done at 0.32.
    """
    clock = Fixed(prefill=0.05, step=0.03)
    work = ServingWorkload(rate_per_s=10, requests=2, prompt=100, output=3, arrivals="even")
    first, second = simulate(Fleet(decode=D), work, clocks=(clock, clock)).requests
    assert (first.arrive, first.start, first.first, first.finish) == pytest.approx((0.10, 0.10, 0.15, 0.21))
    assert (second.arrive, second.start, second.first, second.finish) == pytest.approx((0.20, 0.21, 0.26, 0.32))
    # with four tokens the first is held up by the second's prefill: 0.15, 0.18, 0.21, and 0.21 + 0.05 + 0.03
    longer = ServingWorkload(rate_per_s=10, requests=2, prompt=100, output=4, arrivals="even")
    first, second = simulate(Fleet(decode=D), longer, clocks=(clock, clock)).requests
    assert first.finish == pytest.approx(0.29) and second.first == pytest.approx(0.29)


def in_flight(requests) -> int:
    """Most requests between their admission and their end in the engine at one moment."""
    ends = [(round(r.finish - r.back_s, 9), -1) for r in requests]
    changes = sorted([(round(r.start, 9), +1) for r in requests] + ends)
    count = most = 0
    for _, change in changes:  # at equal times an end comes first
        count += change
        most = max(most, count)
    return most


@pytest.mark.parametrize("prompt, output", [(100, 3900), (2000, 2000), (3900, 100)])
def test_a_request_is_admitted_when_its_whole_context_fits(prompt, output):
    """4,000 tokens each, however they are split: as many run together as 4,000 goes into the cache, and no more."""
    weights = chip_memory(D).weights_bytes / chip_memory(D).capacity_bytes
    d = D.with_changes(memory_share=weights + 0.0085)
    fitting = int(chip_memory(d).kv_tokens // 4000)
    assert fitting == chip_memory(d).requests(4000) and 3 <= fitting <= 9
    r = simulate(Fleet(decode=d), ServingWorkload(concurrency=12, requests=36, prompt=prompt, output=output))
    assert r.finished == 36 and in_flight(r.requests) == fitting


def test_a_decode_instance_of_its_own_admits_by_the_whole_context_too():
    weights = chip_memory(D).weights_bytes / chip_memory(D).capacity_bytes
    d = D.with_changes(memory_share=weights + 0.0085)
    fitting = chip_memory(d).requests(4000)
    fleet = Fleet(decode=d, prefill=D, prefill_instances=1)
    r = simulate(fleet, ServingWorkload(concurrency=12, requests=120, prompt=100, output=3900))
    assert 0.9 * fitting < r.mean_batch <= fitting


def wide(**constants) -> Deployment:
    d = Deployment.of("deepseek_v3", "h800_deepseek", chips=32, precision="fp8", stack="deepseek-inhouse")
    return d.with_changes(stack=d.stack.with_changes(**{"two_batch": 0} | constants))


@pytest.mark.parametrize("imbalance", [1.0, 1.3, 2.0])
def test_the_busiest_chip_of_an_instance_sets_the_time_of_decoding_experts(imbalance):
    """By FLOPs: 16,384 tokens a group × 32 groups × 8 experts / 32 chips, times the imbalance, three matmuls each.

    Block-scaled fp8 on Hopper takes 2.5 times its FLOPs' own time in the measured expert tables.
    """
    T, d = 16384, wide(imbalance=imbalance)
    m = d.model
    pairs = T * m.experts_per_token * imbalance  # (token, expert) on that chip
    flops = m.moe_layers * pairs * 3 * 2 * m.hidden * m.moe_ffn
    bound = flops / d.cluster.chip.peak("fp8").value
    seconds = decode_step(d, T, 1024).parts["experts"]
    assert 2.5 * bound < seconds < 3.2 * bound, seconds / bound


def test_experts_of_decoding_take_longer_by_the_imbalance_and_nothing_else_does():
    even, uneven = (decode_step(wide(imbalance=x), 16384, 1024).parts for x in (1.0, 2.0))
    shared = 0.25  # at most: the shared expert and the router's share of the time, which do not depend on it
    assert 2.0 - shared < uneven["experts"] / even["experts"] <= 2.0
    others = {"all-to-all", "experts", "drafts"}  # what is left of the messages depends on what hides them
    assert {k: v for k, v in even.items() if k not in others} == pytest.approx(
        {k: v for k, v in uneven.items() if k not in others}
    )


def test_chips_that_share_each_expert_have_no_imbalance():
    one = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")
    other = one.with_changes(stack=one.stack.with_changes(imbalance=2.0))
    assert decode_step(one, 64, 4096).parts == decode_step(other, 64, 4096).parts


def test_imbalance_while_prefilling_stretches_the_whole_step():
    even, uneven = (prefill(wide(prefill_imbalance=x), 4096, prompts=4) for x in (1.0, 1.5))
    assert uneven.total_s == pytest.approx(1.5 * even.total_s) and uneven.tokens == even.tokens == 4 * 4096 * 32


def test_stages_add_the_hops_between_them():
    """A slower network takes its longer hops, and nothing else of a step of dense layers on one chip a stage."""
    d = Deployment.of("llama3_8b", "dgx_h100", chips=2, pp=2, precision="bf16", kv="bf16")
    step = decode_step(d, 4, 1000)
    assert step.total_s == pytest.approx(sum(step.parts.values())) and step.parts["stage hops"] > 0
    wire = decode_step(d, 4, 1000, "roofline").parts["stage hops"]  # without what starting a message takes
    assert 0 < wire < step.parts["stage hops"]
    # two tokens a stage of 4,096 values of two bytes over the node's links; the engine adds its time to start a message
    tier = d.cluster.tiers[0]
    rate = tier.bytes_per_s.value * tier.efficiency.value
    assert wire == pytest.approx(2 * 4096 * 2 / rate)
    assert step.parts["stage hops"] == pytest.approx(wire + d.stack["one_shot_s"])


def test_flops_of_a_token_by_hand():
    """GLM-5 with 10,000 tokens behind: absorbed attention over 2,048 chosen keys, the indexer over all of them."""
    m, context = D.model, 10_000
    attention = m.layers * m.heads * 2048 * 2 * (512 + 64 + 512)  # scores over latent and position, values over latent
    indexer = m.indexer_full_layers * 32 * context * 2 * (128 + 1)
    linear = m.flops_breakdown(1, sparse=True)["linear"]
    assert flops_per_token(D, context) == pytest.approx(linear + attention)
    assert score_flops_per_token(D, context) == pytest.approx(indexer)


def test_lengths_between_two_bounds_have_their_middle_as_mean():
    assert RequestLengths.of({"low": 100, "high": 300}).mean == 200
    assert RequestLengths.of({"low": 100, "high": 100}).mean == 100
    with pytest.raises(InputError, match="low=101 is above high=100; swap them"):
        RequestLengths.of({"low": 101, "high": 100})
    assert RequestLengths.of({"mean": 70, "cv": 0.5}) == RequestLengths(70.0, 0.5)
    assert RequestLengths.of("8k").mean == 8192 and RequestLengths.of({"low": "1k", "high": "128K"}).high == 131_072
    with pytest.raises(InputError, match="prompt: '20k' reads two ways.*write 20000 or 20480"):
        RequestLengths.of("20k", "prompt")
    with pytest.raises(InputError, match=r"prompt\.mean=None: must be a number"):
        RequestLengths.of({"cv": 0.5}, "prompt")


def test_two_batches_hide_messages_where_the_engine_does_it_and_in_the_bound():
    """An engine that runs one batch pays its messages whole; the bound assumes the better way."""
    for two_batch in (0, 1):
        d = wide(two_batch=two_batch)
        for mode, hidden in (("hybrid", bool(two_batch)), ("roofline", True)):
            assert prefill(d, 4096, prompts=2, mode=mode).overlapped is hidden
            assert decode_step(d, 16384, 1024, mode).overlapped is hidden  # large: halves of it fill the chip


def test_prompts_through_stages_are_counted_once():
    """Three prompts of 500 new tokens on two stages: 1,500 tokens, not those of each stage."""
    d = Deployment.of("llama3_8b", "dgx_h100", chips=2, pp=2, precision="bf16", kv="bf16")
    assert prefill(d, 800, cached=300, prompts=3).tokens == 1500
    assert decode_step(d, 6, 800).tokens == 6


def test_a_draft_joins_the_stream_and_the_token_before_its_layer(monkeypatch):
    """The module's first product takes two hidden states of a request to one."""
    shapes, whole = [], Roof.matmul
    monkeypatch.setattr(Roof, "matmul", lambda self, *a, **k: shapes.append(a[:3]) or whole(self, *a, **k))
    d = wide()
    decode_step(d, 32, 4096)
    hidden = d.model.hidden
    assert (32, hidden, 2 * hidden) not in shapes
    decode_step(d.with_changes(drafts=1), 32, 4096)
    assert shapes.count((32, hidden, 2 * hidden)) == 1


def test_rows_of_the_grouped_products_fill_blocks_on_hopper():
    """Blocks of 128: an expert that few tokens reach has one block, one with more than a block half a block unused."""
    roof = Roof(wide(expert_block_rows=128), "hybrid")
    for rows, used, filled in (
        (4, 8, 8 * 128),  # half a row each: those that are used at all have one block
        (8, 8, 8 * 128),
        (80, 8, 8 * 128),
        (1024, 8, 8 * 128),
        (2048, 8, 2048 + 8 * 64),
    ):
        found = roof.padded_rows(rows, used, "fp8")
        assert found == pytest.approx(filled if rows >= used else rows + used * (128 - rows / used)), rows
        assert roof.padded_rows(rows, used, "bf16") == rows
    assert Roof(wide(expert_block_rows=0), "hybrid").padded_rows(80, 8, "fp8") == 80


def test_an_attention_that_the_fp8_checkpoint_leaves_alone_is_read_in_bf16():
    d = Deployment.of("llama3_8b", "dgx_h100", chips=1, precision="fp8")
    assert d.attention_compute == "fp8" and 1.0 <= d.attention_bytes < 1.01  # with its scales
    left = Deployment.of(dataclasses.replace(d.model, fp8_attention=False), "dgx_h100", chips=1, precision="fp8")
    assert (left.attention_bytes, left.attention_compute) == (2.0, "bf16")
    for fp8_attention in (True, False):  # the flag speaks of the published FP8 checkpoint alone
        model = dataclasses.replace(d.model, fp8_attention=fp8_attention)
        four = Deployment.of(model, "dgx_h100", chips=1, precision="awq")
        assert four.attention_bytes < 1.0 and four.attention_bytes == four.format.dense_bytes
        assert Deployment.of(model, "dgx_h100", chips=1, precision="bf16").attention_bytes == 2.0


def test_the_measured_layer_is_that_of_its_shape_alone():
    """GLM-5's attention was measured on H200; one more head or another choice of keys is not that layer."""
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")
    assert measured_decode_layer(Roof(d, "hybrid"), 16, 1.0, 8192) is not None
    assert measured_decode_layer(Roof(d, "roofline"), 16, 1.0, 8192) is None
    for change in ({"heads": 65, "kv_heads": 65}, {"index_topk": 1024}, {"index_heads": 16}, {"hidden": 6400}):
        other = Deployment.of(dataclasses.replace(d.model, **change), "dgx_h200", chips=8, attention_tp=1, kv="fp8")
        assert measured_decode_layer(Roof(other, "hybrid"), 16, 1.0, 8192) is None, change


def test_a_grouped_product_moves_its_weights_and_its_rows():
    """By the difference of two row counts: each row passes `expert_passes` times, two bytes a value."""
    d = wide(expert_block_rows=0, imbalance=1.0, grouped_compute_block=0.0)
    d = d.with_changes(model=dataclasses.replace(d.model, shared_experts=0, shared_ffn=0))
    m, roof = d.model, Roof(d, "hybrid")
    few, many = {}, {}
    tokens = (4096, 8192)  # every expert is chosen in both
    for T, parts in zip(tokens, (few, many), strict=True):
        experts(roof, T, parts, 1.0)
    rows = (tokens[1] - tokens[0]) * d.groups * m.experts_per_token / d.chips
    router = roof.matmul(tokens[1], m.experts, m.hidden, 2.0, "bf16") - roof.matmul(
        tokens[0], m.experts, m.hidden, 2.0, "bf16"
    )
    moved = 2.0 * rows * CONSTANTS["expert_passes"][0] * m.hidden
    found = many["experts"] - few["experts"] - router
    assert found == pytest.approx(CONSTANTS["grouped_memory"][0] * moved / roof.bandwidth, rel=0.02)


class Growing(Fixed):
    """A step takes `step` seconds and `slope` more for each token of context; each prefill call is kept."""

    def __init__(self, prefill, step, slope=0.0):
        super().__init__(prefill, step)
        self.slope, self.calls = slope, []

    def decode_s(self, active, context):
        return self.step + self.slope * context

    def prefill_s(self, prompts, prompt, cached):
        self.calls.append((prompts, prompt, cached))
        return self.prefill * prompts


@pytest.mark.parametrize("apart", [False, True])
def test_prompts_reach_the_clock_by_their_mean_length(apart):
    clock = Growing(0.05, 0.01)
    fleet = Fleet(decode=D, prefill=D, prefill_instances=1) if apart else Fleet(decode=D)
    simulate(fleet, ServingWorkload(concurrency=12, requests=60, prompt=100, output=4), clocks=(clock, clock))
    assert max(prompts for prompts, _, _ in clock.calls) > 1, "several at once"
    assert all(prompt == pytest.approx(100) and cached == 0 for _, prompt, cached in clock.calls)


def test_a_chunk_that_is_full_takes_no_other_prompt():
    """Prompts of 100 tokens in chunks of 100: one a call; in chunks of 50 each twice, the second time half is there."""
    for chunk, calls in ((100, {(1, 100, 0)}), (50, {(1, 50, 0), (1, 100, 50)})):
        clock = Growing(0.05, 0.01)
        fleet = Fleet(decode=D, chunk_tokens=chunk)
        simulate(fleet, ServingWorkload(concurrency=12, requests=60, prompt=100, output=4), clocks=(clock, clock))
        assert set(clock.calls) == calls and len(clock.calls) == 60 * 100 // chunk


@pytest.mark.parametrize("output", [2, 3, 40, 400])
def test_a_step_reads_the_context_that_has_grown(output):
    """Alone, the n-th step reads the prompt's 100 tokens and n more: an arithmetic series."""
    clock = Growing(0.3, 0.02, 1e-4)
    work = ServingWorkload(rate_per_s=0.02, requests=3, prompt=100, output=output, arrivals="even")
    took = [r.finish - r.first for r in simulate(Fleet(decode=D), work, clocks=(clock, clock)).requests]
    steps = output - 1
    assert took == pytest.approx([steps * (0.02 + 1e-4 * 100) + 1e-4 * steps * (steps - 1) / 2] * 3)


def test_chips_of_a_fleet():
    assert Fleet(decode=D, decode_instances=3).chips == 24
    assert Fleet(decode=D, decode_instances=3, prefill=D, prefill_instances=2).chips == 40
