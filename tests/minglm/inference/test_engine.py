"""The rollout engine: what a request gets never depends on who else runs, when it joined, or where it was stopped."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.inference.engine import Engine
from minglm.inference.generate import generate
from minglm.inference.request import Request
from minglm.model.model import Model

PROMPTS = [list(range(5, 29)), [7, 9], list(range(100, 117)), [3] * 20, [7, 9], [400, 2, 77]]
NEW, HOW = 14, [(0.0, 1.0), (0.9, 1.0), (1.2, 0.8), (0.0, 1.0), (1.0, 1.0), (0.7, 0.95)]


def make_model(**changes):
    torch.manual_seed(0)
    return Model(ModelConfig.named("nano", initializer_range=0.15, **changes)).eval()


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def alone(model):
    """What generate() says of each prompt by itself."""
    return [
        generate(model, [p], NEW, temperature=t, top_p=q, seed=[i]).tokens[0]
        for i, (p, (t, q)) in enumerate(zip(PROMPTS, HOW, strict=True))
    ]


def requests(order, **changes):
    return [
        Request(
            **{
                "id": str(i),
                "prompt": PROMPTS[i],
                "max_new_tokens": NEW,
                "temperature": HOW[i][0],
                "top_p": HOW[i][1],
                "seed": i,
            }
            | changes
        )
        for i in order
    ]


def finish(engine, most=400):
    out = {}
    for _ in range(most):
        if not engine.running + engine.waiting:
            return out
        out.update((r.id, r) for r in engine.step())
    raise AssertionError(f"not done after {most} steps")


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    order=st.permutations(range(len(PROMPTS))),
    max_batch=st.integers(1, 6),
    speculate=st.sampled_from([0, 0, 1, 2]),
    keep=st.booleans(),
    budget=st.sampled_from([10, 40, 512]),
    late=st.integers(0, 5),
    stops=st.lists(st.tuples(st.integers(0, 60), st.sets(st.integers(0, 5), min_size=1)), max_size=5),
)
def test_company_order_and_aborts_never_change_a_token(
    model, alone, order, max_batch, speculate, keep, budget, late, stops
):
    """`late` requests join on the way; at some steps some are aborted and come back at the end of the queue."""
    engine = Engine(model, max_batch, 48, speculate=speculate, reuse_kv_cache=keep, prefill_budget=budget)
    todo, out, stops = requests(order), {}, dict(stops)
    for request in todo[: len(todo) - late]:
        engine.submit(request)
    todo = todo[len(todo) - late :]
    for step in range(600):
        out.update((r.id, r) for r in engine.step())
        if step in stops:
            for request in engine.abort({str(i) for i in stops[step]}):
                assert request.reason == "abort"
                engine.submit(request)
        if todo and step % 3 == 2:
            engine.submit(todo.pop())
        if len(out) == len(PROMPTS):
            break
    assert [out[str(i)].tokens for i in range(len(PROMPTS))] == alone
    assert all(r.reason == "length" and len(r.logprobs) == len(r.versions) == NEW for r in out.values())
    assert engine.running == engine.waiting == 0


@pytest.mark.parametrize("mode", ["sparse", "dense"])
@pytest.mark.parametrize("changes", [{}, {"indexer_types": ("full", "shared", "full")}, {"n_shared_experts": 0}])
def test_equals_generate_for_other_shapes_of_model(mode, changes):
    model = make_model(**changes)
    want = generate(model, PROMPTS, NEW, mode=mode, temperature=0.9, seed=5)
    engine = Engine(model, 4, 48, mode=mode, speculate=2)
    for i, prompt in enumerate(PROMPTS):
        engine.submit(Request(str(i), prompt, NEW, 0.9, seed=5 + i))
    out = finish(engine)
    assert [out[str(i)].tokens for i in range(len(PROMPTS))] == want.tokens


def test_logprobs_are_those_of_the_distribution_sampled_from(model):
    engine = Engine(model, 6, 48)
    for request in requests(range(len(PROMPTS))):
        engine.submit(request)
    for i, request in finish(engine).items():
        temperature, top_p = HOW[int(i)]
        row = torch.tensor([request.prompt + request.tokens])
        with torch.no_grad():
            logits = model(row).logits[0, len(request.prompt) - 1 : -1] / (temperature or 1)
        for at, token, logprob in zip(logits.softmax(-1), request.tokens, request.logprobs, strict=False):
            if temperature:
                ranked, order = at.sort(descending=True)
                kept = order[: int((ranked.cumsum(0) < top_p).sum()) + 1]
                at = torch.zeros_like(at).index_copy(0, kept, at[kept] / at[kept].sum())
            assert logprob == pytest.approx(at[token].log().item(), abs=1e-3)


def test_the_stop_token_is_part_of_the_response(model, alone):
    stop = alone[1][4]
    engine = Engine(model, 2, 48)
    engine.submit(requests([1], stop=(stop,))[0])
    (request,) = finish(engine).values()
    assert request.reason == "stop" and request.tokens == alone[1][: alone[1].index(stop) + 1]
    assert len(request.logprobs) == len(request.tokens)


def test_samples_of_one_prompt_are_read_once(model):
    engine = Engine(model, 8, 48)
    for i in range(8):
        engine.submit(Request(str(i), PROMPTS[0], 3, seed=i))
    engine.step()
    assert engine.stats.prefilled == len(PROMPTS[0]) and engine.running == 8
    out = finish(engine)
    for i in range(8):
        assert out[str(i)].tokens == generate(model, [PROMPTS[0]], 3, temperature=1.0, seed=[i]).tokens[0]


def test_reading_in_never_exceeds_the_budget(model):
    """Those already running get a token in every step while a long prompt is prefilled in pieces."""
    engine = Engine(model, 3, 80, prefill_budget=12)
    engine.submit(Request("short", [5, 6], 30, 0.0))
    engine.step()
    engine.submit(Request("long", list(range(10, 60)), 4, 0.0))
    (short,) = engine._rows
    read = engine.stats.prefilled
    for _ in range(5):
        before = len(short.tokens)
        engine.step()
        assert engine.stats.prefilled - read <= 12 and len(short.tokens) == before + 1
        read = engine.stats.prefilled
    out = finish(engine)
    assert out["long"].tokens == generate(model, [list(range(10, 60))], 4).tokens[0]


def test_a_resumed_request_is_read_again_unless_its_cache_is_kept(model, alone):
    for keep in (False, True):
        engine = Engine(model, 2, 48, reuse_kv_cache=keep)
        engine.submit(requests([0])[0])
        for _ in range(5):
            engine.step()
        (back,) = engine.abort()
        assert len(back.tokens) == 6 and engine.running == 0  # reading in gives the first, each step one
        engine.submit(back)
        assert finish(engine)["0"].tokens == alone[0]
        assert engine.stats.reprefilled == (0 if keep else len(PROMPTS[0]) + 6)


def test_new_weights_reach_running_requests_and_mark_their_tokens(model):
    other = make_model(rope_theta=10_000.0)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    for refresh in (False, True):
        engine = Engine(copy.deepcopy(model), 2, 48, recompute_kv_on_weight_sync=refresh)
        engine.submit(requests([2], temperature=0.0)[0])
        for _ in range(4):
            engine.step()
        engine.update_weights(other.state_dict(), version=3)
        request = finish(engine)["2"]
        assert request.versions == [0] * 5 + [3] * (NEW - 5) and engine.version == 3
        # With its sequence prefilled again, what follows is what the new weights say of it.
        if refresh:
            seen = request.prompt + request.tokens[:5]
            assert request.tokens[5:] == generate(other, [seen], NEW - 5).tokens[0]
            assert engine.stats.reprefilled == len(seen)
        # A new request sees new weights only.
        engine.submit(Request("new", PROMPTS[3], NEW, 0.0))
        assert finish(engine)["new"].tokens == generate(other, [PROMPTS[3]], NEW).tokens[0]


def test_a_push_that_cannot_be_changes_nothing(model, alone):
    engine = Engine(copy.deepcopy(model), 2, 48)
    engine.update_weights(model.state_dict(), 2)
    state = model.state_dict()
    broken = {
        "stale": (state, 1, "version 1"),
        "missing": ({k: v for k, v in state.items() if k != "norm.weight"}, 3, "norm.weight is missing"),
        "extra": (state | {"nonsense": torch.ones(1)}, 3, "nonsense"),
        "shape": (state | {"norm.weight": torch.ones(3)}, 3, r"norm.weight is \(3,\)"),
        "nan": (state | {"norm.weight": torch.full((64,), float("nan"))}, 3, "not finite"),
    }
    for given_state, version, says in broken.values():
        with pytest.raises(InputError, match=says) as err:
            engine.update_weights(given_state, version)
        assert "\n" not in str(err.value) and engine.version == 2
    engine.submit(requests([0])[0])
    assert finish(engine)["0"].tokens == alone[0]


@pytest.mark.parametrize("speculate", [0, 2])
def test_routes_are_the_experts_of_the_position_that_predicted(model, speculate):
    """Whole-sequence routes from hooks on a forward, against those recorded a token at a time, through an abort."""
    engine = Engine(model, 2, 48, record_routes=True, speculate=speculate, prefill_budget=9)
    for request in requests([0, 1, 2], temperature=0.9):
        engine.submit(request)
    for _ in range(9):
        engine.step()
    for request in engine.abort():
        engine.submit(request)
    for request in finish(engine).values():
        chosen, hooks = [], []
        for layer in model.layers[1:]:
            hooks.append(layer.mlp.gate.register_forward_hook(lambda _, __, out, into=chosen: into.append(out[0])))
        with torch.no_grad():
            model(torch.tensor([request.prompt + request.tokens]))
        for hook in hooks:
            hook.remove()
        want = torch.stack(chosen, 1)[len(request.prompt) - 1 : -1].sort(-1).values
        assert len(request.routes) == NEW
        assert torch.equal(torch.stack(request.routes).long().sort(-1).values, want)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": [512]}, "0 to 511"),
        ({"prompt": [-1]}, "0 to 511"),
        ({"tokens": [900], "logprobs": [0.0], "versions": [0]}, "0 to 511"),
        ({"prompt": [1] * 48}, "max_len=48"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"tokens": [1, 2], "logprobs": [0.0], "versions": [0, 0]}, "2 tokens, 1 logprobs"),
        ({"tokens": [4], "logprobs": [0.0], "versions": [0], "max_new_tokens": 1}, "already complete"),
        ({"tokens": [4], "logprobs": [0.0], "versions": [0], "stop": (4,)}, "already complete"),
    ],
)
def test_requests_that_cannot_run_are_refused_in_one_line(model, changes, says):
    engine = Engine(model, 2, 48)
    with pytest.raises(InputError) as err:
        engine.submit(Request(**{"id": "bad", "prompt": [1], "max_new_tokens": 4} | changes))
    assert says in str(err.value) and "bad" in str(err.value) and "\n" not in str(err.value)
    assert engine.waiting == 0 and engine.step() == []


def test_an_id_is_used_once_at_a_time(model):
    engine = Engine(model, 2, 48)
    engine.submit(Request("a", [1], 2))
    with pytest.raises(InputError, match="own id"):
        engine.submit(Request("a", [1], 2))
    finish(engine)
    engine.submit(Request("a", [1], 2))
    assert [r.id for r in engine.abort({"a", "unknown"})] == ["a"]


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"max_batch": 0}, "max_batch=0"),
        ({"max_len": 513}, "max_position_embeddings=512"),
        ({"mode": "warmup"}, "'warmup'"),
        ({"speculate": -1}, "speculate=-1"),
        ({"prefill_budget": 0}, "prefill_budget=0"),
    ],
)
def test_engines_that_cannot_be_are_refused(model, settings_, says):
    with pytest.raises(InputError) as err:
        Engine(model, **{"max_batch": 2, "max_len": 32} | settings_)
    assert says in str(err.value) and "\n" not in str(err.value)


def test_no_prediction_module_no_drafts():
    with pytest.raises(InputError, match="num_nextn_predict_layers=0"):
        Engine(make_model(num_nextn_predict_layers=0), 2, 32, speculate=1)
