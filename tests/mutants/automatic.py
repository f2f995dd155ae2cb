"""Every small change of an operator or a number in the core files, a sample of which is tried: `--automatic`.

A change is one node of the syntax tree: a comparison at its border or turned round, + for −, × for ÷, `and` for `or`, a
`not` that goes, `min` for `max`, a whole number one larger, a fraction twice as large. What only words a message, an
annotation or a default text is left alone. Of C a change is one such operator or number of the code.
"""

import ast
import copy
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.mutants.planted import Planted

_COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
_COMPARE |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
_BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
_BINARY |= {ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult}
_SWAPPED = {"min": "max", "max": "min", "floor": "ceil", "ceil": "floor", "any": "all", "all": "any"}

_C_SITE = re.compile(r"(?<= )(?:<=|>=|==|!=|&&|\|\||\+=|-=|[<>+*/%-])(?= )|(?<![\w.])\d+(?:\.\d+f?)?(?![\w.])")
_C_SWAPPED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&", "+": "-"}
_C_SWAPPED |= {"-": "+", "*": "/", "/": "*", "%": "/", "+=": "-=", "-=": "+="}
_C_TEXT = re.compile(r"/\*.*?\*/|^(?:#|typedef)[^\n]*", re.S | re.M)  # nothing is changed in it

_PAGE = "tests/sim/dashboard/test_dashboard.py"
_ANSWER = " ".join(  # one answer, and what the page says of it
    f"{_PAGE}::test_{name}"
    for name in (
        "the_budget_question",
        "each_result_says_what_moves_it_most",
        "a_rent_is_said_with_its_range_where_it_has_one",
        "what_is_at_its_default_is_no_assumption_of_the_user",
        "memory_of_a_chip_in_gib",
        "two_saved_scenarios_are_compared",
    )
)

_LAUNCHES = "tests/sim/scenario/test_launch.py tests/gallery -k launch"

# The core, and what is run for a change in it. Tests of the file's own room: a change that only a golden output or
# a notebook would notice counts as not seen.
CORE = {
    "minglm/config.py": "tests/minglm/test_config.py",
    "minglm/config_file.py": "tests/minglm/test_config.py tests/minglm/test_config_file.py",
    "minglm/model/attention.py": "tests/minglm/model/test_attention.py",
    "minglm/model/indexer.py": "tests/minglm/model/test_attention.py tests/minglm/model/test_sparse_attention.py",
    "minglm/model/compiled_choice.py": "tests/minglm/model/test_compiled_choice.py",
    "minglm/model/compiled_kl.py": "tests/minglm/model/test_compiled_kl.py",
    "minglm/model/experts.c": "tests/minglm/model/test_compiled_experts.py",
    "minglm/model/attend_documents.c": "tests/minglm/model/test_compiled_attention.py",
    "minglm/model/attend_chosen.c": "tests/minglm/model/test_compiled_attention.py",
    "minglm/runtime/multiply.h": "tests/minglm/model/test_compiled_experts.py tests/minglm/training/test_optim.py",
    "minglm/runtime/rounding.h": "tests/minglm/quant",
    "minglm/training/muon.c": "tests/minglm/training/test_optim.py",
    "minglm/quant/codes.c": "tests/minglm/quant",
    "minglm/model/choose.c": "tests/minglm/model/test_compiled_choice.py",
    "minglm/model/learn.c": "tests/minglm/model/test_compiled_kl.py",
    "minglm/runtime/kernels.h": "tests/minglm/model/test_compiled_choice.py tests/minglm/model/test_compiled_kl.py "
    "tests/minglm/inference/test_compiled_step.py tests/minglm/inference/test_exact.py",
    "minglm/inference/decode.c": "tests/minglm/inference/test_compiled_step.py tests/minglm/inference/test_exact.py",
    "minglm/model/layers.py": "tests/minglm/model/test_layers.py",
    "minglm/model/moe.py": "tests/minglm/model/test_moe.py",
    "minglm/model/mtp.py": "tests/minglm/model/test_mtp.py",
    "minglm/training/optim.py": "tests/minglm/training/test_optim.py",
    "minglm/training/checkpoint.py": "tests/minglm/training/test_checkpoint.py",
    "minglm/training/loop.py": "tests/minglm/training/test_loop.py tests/minglm/training/test_step_law.py",
    "minglm/training/data.py": "tests/minglm/training/test_data.py",
    "minglm/training/metrics.py": "tests/minglm/training/test_metrics.py",
    "minglm/training/recipe.py": "tests/minglm/training/test_recipe.py",
    "minglm/data/conversations.py": "tests/minglm/data/test_conversations.py",
    "minglm/data/chat.py": "tests/minglm/data/test_chat.py",
    "minglm/rl/trainer.py": "tests/minglm/rl/test_trainer.py",
    "minglm/rl/rewards.py": "tests/minglm/rl/test_rewards.py",
    "minglm/rl/modes.py": "tests/minglm/rl/test_modes.py",
    "minglm/rl/objectives.py": "tests/minglm/rl/test_objectives.py",
    "minglm/quant/fp8.py": "tests/minglm/quant/test_formats.py",
    "minglm/quant/int4.py": "tests/minglm/quant/test_formats.py",
    "minglm/quant/int8.py": "tests/minglm/quant/test_formats.py",
    "minglm/quant/qat.py": "tests/minglm/quant",
    "minglm/inference/absorbed.py": "tests/minglm/inference/test_decoder.py tests/minglm/inference/test_exact.py",
    "minglm/inference/decoder.py": "tests/minglm/inference/test_decoder.py tests/minglm/inference/test_exact.py",
    "minglm/inference/engine.py": "tests/minglm/inference/test_engine.py",
    "minglm/inference/prefill.py": "tests/minglm/inference/test_decoder.py tests/minglm/inference/test_exact.py",
    "minglm/inference/compiled_step.py": "tests/minglm/inference/test_compiled_step.py "
    "tests/minglm/inference/test_decoder.py",
    "minglm/inference/speculative.py": "tests/minglm/inference/test_speculative.py",
    "minglm/inference/sampling.py": "tests/minglm/inference/test_sampling.py",
    "minglm/numbers.py": "tests/sim/base tests/minglm/runtime/test_arguments.py",
    "minglm/runtime/arguments.py": "tests/minglm/runtime/test_arguments.py",
    "sim/base/units.py": "tests/sim/base",
    "sim/base/spreadsheet.py": "tests/sim/base",
    "sim/cost/closed_form.py": "tests/sim/cost/test_closed_form.py tests/sim/cost/test_by_hand.py",
    "sim/cost/collectives.py": "tests/sim/cost/test_collectives.py",
    "sim/cost/kernels.py": "tests/sim/cost/test_kernels.py",
    "sim/cost/memory.py": "tests/sim/cost/test_by_hand.py tests/sim/cost/test_step.py",
    "sim/cost/money.py": "tests/sim/cost/test_money.py",
    "sim/cost/operators.py": "tests/sim/cost/test_operators.py tests/sim/cost/test_by_hand.py",
    "sim/cost/operators_attention.py": "tests/sim/cost/test_operators.py tests/sim/cost/test_by_hand.py",
    "sim/rollout/engine.py": "tests/sim/rollout",
    "sim/rollout/metrics.py": "tests/sim/rollout/test_metrics.py",
    "sim/rollout/trainer_process.py": "tests/sim/rollout",
    "sim/rollout/lengths.py": "tests/sim/rollout",
    "sim/rollout/collector.py": "tests/sim/rollout",
    "sim/rollout/dispatcher.py": "tests/sim/rollout",
    "sim/planner/candidates.py": "tests/sim/planner/test_planner.py tests/property/test_planner_costs.py",
    "sim/planner/search.py": "tests/sim/planner/test_planner.py tests/property/test_planner_search.py",
    "sim/planner/space.py": "tests/sim/planner/test_planner.py tests/sim/planner/test_space.py",
    "sim/dashboard/figures.py": f"{_PAGE}::test_two_answers_beside_each_other_in_words {_ANSWER}",
    "sim/dashboard/state.py": f"{_PAGE}::test_what_is_saved_is_a_scenario_and_comes_back_the_same {_PAGE}::"
    f"test_old_and_broken_files_are_refused_in_words {_PAGE}::test_a_link_and_a_file_carry_the_question {_ANSWER}",
    "sim/scenario/launch/branches.py": "tests/sim/scenario/test_launch.py",
    "sim/scenario/launch/megatron.py": _LAUNCHES,
    "sim/scenario/launch/shell.py": _LAUNCHES,
    "sim/scenario/launch/torchtitan.py": _LAUNCHES,
    "sim/serving/cache.py": "tests/sim/serving/test_engine_memory.py tests/sim/serving/test_deployment.py",
    "sim/serving/engine_memory.py": "tests/sim/serving/test_engine_memory.py tests/sim/serving/test_memory_receipts.py",
    "sim/serving/deployment.py": "tests/sim/serving/test_by_hand.py tests/sim/serving/test_deployment.py",
    "sim/serving/instances.py": "tests/sim/serving/test_by_hand.py tests/sim/serving/test_simulate.py",
    "sim/serving/operators.py": "tests/sim/serving/test_step_time.py tests/sim/serving/test_by_hand.py",
    "sim/serving/simulate.py": "tests/sim/serving/test_by_hand.py tests/sim/serving/test_simulate.py",
    "sim/serving/sizing.py": "tests/sim/serving/test_sizing.py",
    "sim/serving/margin.py": "tests/sim/serving/test_by_hand.py tests/sim/serving/test_sizing.py",
    "sim/serving/memory.py": "tests/sim/serving/test_memory_receipts.py tests/sim/serving/test_deployment.py",
    "sim/serving/step_time.py": "tests/sim/serving/test_step_time.py tests/sim/serving/test_by_hand.py",
    "sim/serving/workload.py": "tests/sim/serving/test_by_hand.py tests/sim/serving/test_simulate.py",
    "sim/spec/huggingface_config.py": "tests/sim/spec/test_huggingface.py tests/sim/spec/test_huggingface_families.py",
    "sim/spec/huggingface_decoder.py": "tests/sim/spec/test_huggingface.py tests/sim/spec/test_huggingface_families.py",
    "sim/spec/huggingface_dense.py": "tests/sim/spec/test_huggingface.py tests/sim/spec/test_huggingface_families.py",
    "sim/spec/huggingface_experts.py": "tests/sim/spec/test_huggingface.py tests/sim/spec/test_huggingface_families.py",
    "sim/spec/model.py": "tests/sim/spec",
    "sim/spec/plan.py": "tests/sim/spec/test_plan.py",
    "sim/validation/coverage.py": "tests/sim/validation/test_coverage.py",
    "sim/validation/summary.py": "tests/sim/validation/test_summary.py",
    "sim/training/checkpoints.py": "tests/sim/training/test_checkpoints.py tests/sim/training/test_campaign.py",
    "sim/training/failures.py": "tests/sim/training/test_failures.py tests/sim/training/test_campaign.py",
    "sim/training/schedules.py": "tests/sim/training/test_schedules.py",
}


class Change(NamedTuple):
    """One change: its line, what it is in words, and the whole file with it."""

    line: int
    words: str
    text: str


def _skipped(node: ast.AST) -> set[int]:
    """Nodes in which nothing is changed: messages, annotations, decorators."""
    out: set[int] = set()
    for n in ast.walk(node):
        parts: list[ast.AST | None] = []
        if isinstance(n, ast.Raise | ast.JoinedStr | ast.Assert):
            parts = [n]
        elif isinstance(n, ast.AnnAssign):
            parts = [n.annotation]
        elif isinstance(n, ast.arg):
            parts = [n.annotation]
        elif isinstance(n, ast.FunctionDef):
            parts = [n.returns, *n.decorator_list]
        for part in parts:
            if part is not None:
                out |= {id(x) for x in ast.walk(part)}
    return out


def _sites(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """(number of the node in walking order, which of its operators) of every place that can change."""
    skipped = _skipped(tree)
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Compare):
            yield from ((number, k) for k, op in enumerate(node.ops) if type(op) in _COMPARE)
        elif (isinstance(node, ast.BinOp) and type(node.op) in _BINARY) or isinstance(node, ast.BoolOp):
            yield number, 0
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield number, 0
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value != 1e-12:
            yield number, 0
        elif isinstance(node, ast.Name) and node.id in _SWAPPED:
            yield number, 0


def _changed(node: ast.AST, which: int) -> None:
    """Change the node in place."""
    if isinstance(node, ast.Compare):
        node.ops[which] = _COMPARE[type(node.ops[which])]()
    elif isinstance(node, ast.BinOp):
        node.op = _BINARY[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp):
        node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)  # twice: as it is without one
    elif isinstance(node, ast.Constant):
        node.value = node.value + 1 if isinstance(node.value, int) else node.value * 2 or 1.0
    elif isinstance(node, ast.Name):
        node.id = _SWAPPED[node.id]


def changes(source: str, is_c: bool = False) -> list[tuple[int, int]]:
    """Every place of a file that can change."""
    if is_c:
        blank = _C_TEXT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), source)
        return [found.span() for found in _C_SITE.finditer(blank)]
    return list(_sites(ast.parse(source)))


def change(source: str, site: tuple[int, int], is_c: bool = False) -> Change:
    """The file with the change at a place."""
    if is_c:
        return _change_c(source, *site)
    tree = ast.parse(source)
    changed = copy.deepcopy(tree)
    before, after = (next(n for i, n in enumerate(ast.walk(t)) if i == site[0]) for t in (tree, changed))
    old = ast.unparse(before)
    _changed(after, site[1])
    return Change(getattr(before, "lineno", 0), f"{old[:60]} -> {ast.unparse(after)[:60]}", ast.unparse(changed))


def _change_c(source: str, start: int, end: int) -> Change:
    old = source[start:end]
    new = _C_SWAPPED.get(old) or (str(int(old) + 1) if old.isdigit() else f"2 * {old}")
    begin, stop = source.rfind("\n", 0, start) + 1, source.find("\n", end)
    begin, stop = max(begin, start - 30), min(stop, end + 30)
    before, after = source[begin:start].lstrip(), source[end:stop]
    words = f"{before}{old}{after} -> {before}{new}{after}"
    return Change(source.count("\n", 0, start) + 1, words, source[:start] + new + source[end:])


def sample(part: str, each: int, seed: int, read) -> list[tuple[Planted, Change]]:
    """`each` changes of every core file whose name holds `part`, the same ones for a seed.

    read: path → text. `old` and `new` of a fault are the whole file.
    """
    out = []
    for file, tests in CORE.items():
        if part in file:
            source, is_c = read(file), file.endswith((".c", ".h"))
            sites = changes(source, is_c)
            for site in sorted(random.Random(f"{seed} {file}").sample(sites, min(each, len(sites)))):
                made = change(source, site, is_c)
                out.append((Planted(file, source, made.text, tests), made))
    return out
