"""The tool that plants single faults in the sheets' solutions."""

import pytest

pytest.importorskip("torch")
from minglm.course.workshop import generator, single_faults


@pytest.mark.slow
def test_solutions_are_accepted_and_their_faults_refused():
    path = next(p for p in generator.sources() if p.stem.startswith("00"))
    planted = list(single_faults.faults(path))
    assert len(planted) > 40 and len({(f.key, f.place) for f in planted}) == len(planted)
    assert single_faults.survivors(path) == ([], len(planted))


def test_a_fault_changes_one_place():
    path = next(p for p in generator.sources() if p.stem.startswith("02"))
    places = [f.place for f in single_faults.faults(path)]
    for words in ("D ** 0.5 -> D * 0.5", "1 -> 2", "heads -> layers"):
        assert any(words in place for place in places), words


def test_a_function_is_broken_in_the_exercise_that_asks_for_it_and_not_again_where_it_is_used():
    path = next(p for p in generator.sources() if p.stem == "build_0_tokenizer")
    broken = {(f.key, f.place.split()[0]) for f in single_faults.faults(path)}
    assert ("build_0.merge", "merge") in broken and ("build_0.learn", "learn") in broken
    assert ("build_0.learn", "merge") not in broken


def test_a_draw_takes_as_many_of_every_exercise_and_the_same_again():
    path = next(p for p in generator.sources() if p.stem == "build_0_tokenizer")
    planted = list(single_faults.faults(path))
    once = single_faults.drawn(planted, 3)
    assert once == single_faults.drawn(planted, 3) and set(once) <= set(planted)
    assert {f.key: sum(g.key == f.key for g in once) for f in once} == dict.fromkeys({f.key for f in planted}, 3)


def test_a_loop_without_end_is_no_right_answer():
    fault = single_faults.Fault("00.loss_of_knowing_nothing", "", "def forever(V):\n    while True:\n        pass")
    assert not single_faults.accepted(fault, "forever", limit_s=0.5)


@pytest.mark.slow
def test_every_fault_called_equivalent_is_one_that_can_be_planted():
    sheets = [p for p in generator.sources() if p.stem.startswith((*single_faults.SHORT, "build_2"))]
    planted = {f"{f.key} {f.place}" for p in sheets for f in single_faults.faults(p)}
    assert len(planted) > 2000 and not set(single_faults.equivalent()) - planted


@pytest.mark.slow
def test_a_matrix_the_wrong_way_round_and_counts_that_are_too_short_are_refused():
    """In `nano` two widths are equal, so such an answer had the right shape; and every case chose the last expert."""
    path = next(p for p in generator.sources() if p.stem == "build_2_model")
    asked = single_faults.answers(path)
    wanted = (
        "self.heads * self.width, config.q_lora_rank, bias",
        "-> torch.randn(E, C, 2 * F)",
        "MoE 216: scores -> gates",
    )
    planted = [f for f in single_faults.faults(path) if any(words in f.place for words in wanted)]
    assert len(planted) == len(wanted)
    assert [f.place for f in planted if single_faults.accepted(f, asked[f.key], limit_s=120)] == []
    for key in {f.key for f in planted}:
        sound = single_faults.Fault(key, "", single_faults.part(single_faults.sheet(path), asked[key]))
        assert single_faults.accepted(sound, asked[key], limit_s=120)


def test_only_what_an_answer_rests_on_is_run():
    path = next(p for p in generator.sources() if p.stem == "build_2_model")
    part = single_faults.part(single_faults.sheet(path), single_faults.answers(path)["build_2.select"])
    assert "def select" in part and "class GLM" not in part and "show(" not in part
