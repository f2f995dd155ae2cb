"""Launches of other tools: what a shell would pass, what each argument becomes, and remedies that work.

Whole files with their right values are in tests/gallery; here are the parts, and the command.
"""

import shutil
import subprocess

import pytest
import yaml

from minglm.errors import InputError
from sim.cli.main import main
from sim.scenario.launch.deepspeed import read as deepspeed
from sim.scenario.launch.megatron import read as megatron
from sim.scenario.launch.mindformers import read as mindformers
from sim.scenario.launch.read import scenario_of
from sim.scenario.launch.shell import flags
from sim.scenario.launch.torchtitan import read as torchtitan
from tests.gallery.read import HERE

LAUNCHES = HERE / "inputs" / "launches"


@pytest.mark.parametrize(
    "script, passed",
    [
        ("python a.py --x 1 --y_z=2 --flag", {"x": "1", "y-z": "2", "flag": True}),
        ("A=3\nB=$((A * 4 - 2))\nrun --n ${B}", {"n": "10"}),
        ("ARGS=(--a 1\n  --b 2  # why\n)\nARGS+=(--c 3)\nrun ${ARGS[@]}", {"a": "1", "b": "2", "c": "3"}),
        ('O="--a 1"\nO="$O --b 2"\nrun $O --a 5', {"a": "5", "b": "2"}),  # the last one wins, as in argparse
        ("run --a ${N:-7} --b ${M} && echo --c 1", {"a": "7", "b": "${M}", "c": "1"}),
        ("H=$(hostname -I | cut -d' ' -f1)\nrun --m $H --n 4", {"n": "4"}),
        ("run --a 1 \\\n  --b 2 3 \\\n  --c '0,1'", {"a": "1", "b": ["2", "3"], "c": "0,1"}),
        ("run --a 1 > log.txt 2>&1 --b 2", {"a": "1", "b": "2"}),
        ("ARGS=(--only 1)", {"only": "1"}),  # a file of arguments that runs nothing
        ("#SBATCH --gres=gpu:a100:4\n#SBATCH --nodes 2\nsrun x --a 1", {"a": "1", "sbatch-gpus-per-node": "4"}),
        ("run --a $((1/0)) --b 2", {"b": "2"}),
    ],
)
def test_a_script_passes_what_a_shell_would(script, passed):
    found = flags(script, "run.sh")
    assert {k: found.get(k) for k in passed} == passed


BRANCHES = {
    "if": 'T=2\nif [ "$T" -gt 1 ]; then S="--s"; else S=""; fi\nrun --a $T $S --b 1',
    "else": 'T=1\nif [ "$T" -gt 1 ]; then S="--s"\nelse\n S="--r 3"\nfi\nrun --a $T $S --b 1',
    "elif": "M=70B\nif [[ $M == 8B ]]; then T=1\nelif [[ $M == 70* ]]; then T=8; P=2\n"
    "else T=9; fi\nrun --t $T --p ${P:-1}",
    "no branch": "T=1\nif test $T -ge 2; then T=5; fi\nrun --t $T",
    "not": 'T=\nif [ ! -z "$T" ]; then X=1; else X=2; fi\nif [ -n "$T" ]; then X=3; fi\nrun --x $X',
    "case": 'M=70B\ncase $M in\n  8B|"7B") T=1; P=1;;\n  (70*)\n    T=8\n'
    "    P=4 ;;\n  *) T=99;;\nesac\nrun --t $T --p $P",
    "case, last": "case x in\n a) T=1;;\n *) T=2\nesac\nrun --t $T",
    "nested": "A=1; B=2\nif [ $A = 1 ]; then\n if [ $B = 1 ]; then T=1; else T=2; fi\n"
    "else\n case $B in 2) T=3;; esac\nfi\nrun --t $T",
    "commands": "A=0\nif [ $A -eq 1 ]; then\n run --t 1 --u 2\nelse\n run --t 3\nfi",
    "array": 'A=(--x 1)\nM=moe\nif [ "$M" = moe ]; then\n A+=(\n  --e 8 # experts\n  --k 2\n )\nfi\nrun "${A[@]}"',
    "one value": "for T in 4; do\n run --t $T\ndone\necho end",
    "lines": "run --t 1\necho done it\nrun --u 2 # --v 3\necho '#' --no",
    "comment": "# don't\nrun --a 1 # it's --b 2\nN='a # b'\nrun --c 2",
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize("name", BRANCHES)
def test_branches_and_lines_are_those_that_a_shell_takes(name, tmp_path):
    """Each script is run by bash, `run` being what writes down its words."""
    wrote = tmp_path / "words"
    told = f'run() {{ printf "%s\\n" "$@" >> {wrote}; }}\n'
    subprocess.run(["bash", "-c", told + BRANCHES[name]], check=True, capture_output=True, timeout=20)
    passed: dict = {}
    flag = ""
    for word in wrote.read_text().split("\n")[:-1]:
        if word.startswith("--"):
            flag = word[2:]
            passed[flag] = True
        else:
            passed[flag] = word
    assert {k: v for k, v in flags(BRANCHES[name], "run.sh").items() if k != "no"} == passed


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("if [ -f x ]; then T=1; else T=2; fi\nrun --t $T --u 1", {"t": "$T", "u": "1"}),
        ("if [ -f x ]; then T=1; else T=1; fi\nrun --t $T", {"t": "1"}),
        ("case $1 in a) T=1;; b) T=2;; esac\nrun --t $T", {"t": "$T"}),
        ('if [ -z "$T" ]; then T=4; fi\nrun --t $T', {"t": "4"}),  # what has no value is given one
        ("if [ -f x ]; then run --t 1; else echo no; fi", {"t": "1"}),
        ("T=1\nfor T in 2 4; do run --t $T; done", {"t": "$T"}),
    ],
)
def test_what_branches_leave_different_is_not_known(script, found):
    assert flags(script, "run.sh") == found


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "if [ $M = a ]; then A=(--x 1); else A=(--x 2); fi\nrun ${A[@]}",
            "A differs between branches that may run; give --define M=",
        ),
        (
            "if [ $M = a ]; then run --x 1; else run --x 2; fi",
            "branches that may run pass flags each; give --define M=",
        ),
        ("if [ -f y ]; then run --x 1; else run --x 2; fi", "pass flags each; keep one of them"),
    ],
)
def test_flags_that_hang_on_an_unknown_branch_are_refused(script, words):
    with pytest.raises(InputError, match=words) as refusal:
        flags(script, "run.sh")
    assert "\n" not in str(refusal.value)
    if "--define" in words:
        assert flags(script, "run.sh", {"M": "a"})["x"] == "1" and flags(script, "run.sh", {"M": "b"})["x"] == "2"


@pytest.mark.parametrize(
    ("script", "nodes", "each"),
    [
        ("srun -N 4 --gpus-per-node=8 --ntasks-per-node=8 python x.py --nodes 9 --a 1", "4", "8"),
        ("srun --nodes=2 \\\n  --ntasks 16 \\\n  bash -c 'x -N 7' --a 1", "2", "8"),
        ("mpirun --allow-run-as-root -np 16 -H a:8,b:8 python x.py --a 1", "1", "16"),
        ("mpiexec -n 4 python x.py --a 1", "1", "4"),
        ("# srun -N 4\npython x.py --n 3", None, None),
    ],
)
def test_chips_that_srun_and_mpirun_ask_for(script, nodes, each):
    found = flags(script, "run.sh")
    assert (found.get("sbatch-nodes"), found.get("sbatch-ntasks-per-node")) == (nodes, each)


def test_variables_from_outside_go_before_the_scripts_own():
    assert flags("N=1\nrun --n $N", "run.sh", {"N": "4"})["n"] == "4"


def test_variables_that_double_without_end_are_refused():
    script = "A=" + "x" * 100 + "\n" + "A=$A$A\n" * 30 + "run --a $A"
    with pytest.raises(InputError, match="grows beyond"):
        flags(script, "run.sh")


GPT = {"num-layers": "12", "hidden-size": "768", "num-attention-heads": "12", "seq-length": "1024", "bf16": True}
_EMBEDDING, _LOSS = (f"account-for-{end}-in-pipeline-split" for end in ("embedding", "loss"))
GPT |= {"max-position-embeddings": "1024", "vocab-size": "50257"}


@pytest.mark.parametrize(
    "more, path, value",
    [
        ({"num-layers": "31", "pipeline-model-parallel-size": "4", _EMBEDDING: True}, "options.stages", [7, 8, 8, 8]),
        ({"num-layers": "31", "pipeline-model-parallel-size": "4", _LOSS: True}, "options.stages", [8, 8, 8, 7]),
        ({}, "model.vocab", 50304),  # up to a multiple of 128
        ({"tensor-model-parallel-size": "8"}, "model.vocab", 51200),  # of 128 × 8
        ({"make-vocab-size-divisible-by": "1"}, "model.vocab", 50257),
        ({}, "model.positions", 1024),
        ({"position-embedding-type": "rope"}, "model.positions", None),
        ({}, "model.norm", "layer"),
        ({"normalization": "RMSNorm"}, "model.norm", "rms"),
        ({"optimizer": "muon"}, "options.optimizer", "muon"),
        ({"num-query-groups": "4"}, "model.kv_heads", None),  # counts only with --group-query-attention
        ({"num-query-groups": "4", "group-query-attention": True}, "model.kv_heads", 4),
        ({}, "model.qkv_bias", True),
        ({"disable-bias-linear": True}, "model.qkv_bias", False),
        ({"disable-bias-linear": True, "add-qkv-bias": True}, "model.qkv_bias", True),
        ({}, "model.tied", True),
        ({"untie-embeddings-and-output-weights": True}, "model.tied", False),
        ({"window-size": "127,0"}, "model.window", 128),  # so many before a token, and itself
        ({"num-experts": "8", "tensor-model-parallel-size": "4"}, "plan.etp", 4),
        ({"num-experts": "8"}, "model.experts_per_token", 2),
        ({"sequence-parallel": True}, "plan.sp", False),  # one rank has nothing to divide over
        ({"tensor-model-parallel-size": "2", "sequence-parallel": True}, "plan.sp", True),
        ({}, "options.zero", 0),
        ({"use-distributed-optimizer": True}, "options.zero", 1),
        ({"use-torch-fsdp2": True}, "options.zero", 3),
        ({"use-megatron-fsdp": True, "data-parallel-sharding-strategy": "optim_grads"}, "options.zero", 2),
        ({}, "options.dropout", True),  # Megatron's default is 0.1
        ({"attention-dropout": "0", "hidden-dropout": "0.0"}, "options.dropout", False),
        ({"attention-dropout": "0", "hidden-dropout": "0.1"}, "options.dropout", True),
        ({"no-gradient-accumulation-fusion": True}, "options.accumulate_fused", False),
        ({"fp8-format": "hybrid"}, "run.precision", "fp8"),
        ({"recompute-activations": True}, "run.recompute", "selective"),
        ({"recompute-granularity": "full", "recompute-method": "uniform"}, "run.recompute", "full"),
        (
            {"recompute-granularity": "selective", "recompute-modules": ["moe_act", "layernorm"]},
            "run.recompute",
            "none",
        ),
        ({"recompute-granularity": "selective", "recompute-modules": "core_attn"}, "run.recompute", "selective"),
        ({"num-experts": "8"}, "options.router_fused", None),  # fused only where it is asked for
        ({"num-experts": "8", "moe-router-fusion": True}, "options.router_fused", True),
        ({"nnodes": "3", "nproc-per-node": "4"}, "chips", 12),
        ({"worker-num": "16", "local-worker-num": "8"}, "chips", 16),  # msrun
        ({"swiglu": True}, "model.ffn", 2048),  # two thirds of 4 × 768, in whole 64s
        ({"swiglu": True, "hidden-size": "4096"}, "model.ffn", 10880),
        ({"swiglu": True, "ffn-hidden-size": "3072"}, "model.ffn", 3072),
        ({}, "model.ffn", None),  # 4 × hidden
        ({"cp-comm-type": "p2p"}, "run.stack", "Megatron-Core"),
        ({"use-fused-rmsnorm": True, "use-fused-swiglu": True}, "run.stack", "MindSpeed-LLM 2.3.0"),
        ({"use-ascend-mc2": True}, "options.overlap_tp", True),
        ({"use-fused-rmsnorm": True}, "options.overlap_tp", False),
        ({"gemm-gradient-accumulation-fusion": True}, "options.accumulate_fused", True),
        ({"context-parallel-algo": "megatron_cp_algo"}, "run.stack", "MindSpeed-LLM 2.3.0"),
    ],
)
def test_megatrons_defaults_are_its_own(more, path, value):
    launch = megatron(GPT | more, "run.sh")
    whole = {"model": launch.run["model"], "plan": launch.plan, "options": launch.options, "run": launch.run}
    at = whole | {"chips": launch.chips}
    for key in path.split("."):
        at = at.get(key)
    assert at == value


TITAN = {"model": {"name": "llama3", "flavor": "8B"}, "training": {"local_batch_size": 8, "seq_len": 8192}}


@pytest.mark.parametrize(
    "parallelism, plan, micro, schedule",
    [
        ({}, {"tp": 1, "pp": 1}, 8, None),
        ({"expert_parallel_degree": 4, "context_parallel_degree": 2}, {"tp": 1, "pp": 1, "ep": 4, "cp": 2}, 8, None),
        ({"pipeline_parallel_degree": 4}, {"tp": 1, "pp": 4, "vpp": 2}, 1, "interleaved"),  # torchtitan's defaults
        ({"pipeline_parallel_degree": 4, "pipeline_parallel_schedule": "1F1B"}, {"tp": 1, "pp": 4}, 1, "1f1b"),
        ({"pipeline_parallel_degree": 4, "pipeline_parallel_microbatch_size": 2}, {"tp": 1, "pp": 4, "vpp": 2}, 2,
         "interleaved"),
    ],
)  # fmt: skip
def test_torchtitans_pipelines(parallelism, plan, micro, schedule):
    launch = torchtitan(TITAN | {"parallelism": parallelism}, "job.toml")
    assert launch.plan == plan and launch.run["micro_batch"] == micro and launch.run.get("schedule") == schedule
    assert launch.run["local_batch"] == 8 and launch.options["zero"] == 3


@pytest.mark.parametrize("pipeline", [{}, {"pipeline_parallel_degree": 4, "pipeline_parallel_microbatch_size": 1}])
def test_torchtitan_with_one_of_everything(pipeline):
    one = {"training": {"local_batch_size": 1, "seq_len": 1, "steps": 1}}
    one["parallelism"] = {"pipeline_parallel_layers_per_stage": 1, "tensor_parallel_degree": 1, **pipeline}
    launch = torchtitan(TITAN | one, "job.toml")
    run = launch.run
    assert (run["micro_batch"], run["local_batch"], run["seq"], launch.steps) == (1, 1, 1, 1)
    assert run.get("layers_per_stage") == (1 if pipeline else None)


@pytest.mark.parametrize(
    "mode, recompute",
    [
        ({"mode": "none"}, "none"),
        ({"mode": "full"}, "full"),
        ({"mode": "selective", "selective_ac_option": "op"}, "selective_ops"),
        ({"mode": "selective", "selective_ac_option": "1"}, "full"),
        ({"mode": "selective", "selective_ac_option": "2"}, {"kind": "full", "layers": 16}),  # every second of 32
        ({"mode": "selective", "selective_ac_option": 4}, {"kind": "full", "layers": 8}),
    ],
)
def test_torchtitans_checkpointing(mode, recompute):
    launch = torchtitan(TITAN | {"activation_checkpoint": mode}, "job.toml")
    assert scenario_of(launch, "job", chips=8)["recompute"] == recompute


@pytest.mark.parametrize("layout, chunks, ahead", [("Et|t|t|tL", [1, 1, 1, 1], 0), ("E|(t|)*3tmL", [0, 1, 1, 1, 1], 0)])
def test_a_pipeline_layout_is_counted(layout, chunks, ahead):
    from sim.scenario.launch.megatron import _layout, Arguments  # noqa: I001

    assert _layout(layout, Arguments({}, "x")) == (chunks, ahead)


@pytest.mark.parametrize(
    "read, values",
    [
        (megatron, GPT | {"hybrid-layer-ratio": "0.5"}),
        (deepspeed, {"zero_optimization": {"stage": 2, "new_overlap_mode": True}}),
        (torchtitan, {"parallelism": {"spiral_parallel_degree": 2}}),
        (mindformers, {"parallel_config": {"model_parallel": 2, "sequence_stage": 4}}),
    ],
)
def test_what_matters_and_is_not_known_is_refused_and_can_be_passed_over(read, values):
    with pytest.raises(InputError, match="changes time or memory.*--ignore") as refusal:
        read(values, "mine")
    assert "\n" not in str(refusal.value)


def test_the_command_writes_what_run_reads_and_says_what_became_of_each_argument(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = str(LAUNCHES / "megatron_one_line.sh")
    assert main(["import-args", source, "--out", "mine.yaml"]) == 0
    text = (tmp_path / "mine.yaml").read_text()
    given = {w.partition("=")[0].lstrip("-") for w in open(source).read().split() if w.startswith("--")}
    assert {g for g in given if f"--{g.replace('_', '-')}" not in text} == set()  # none is passed over
    assert yaml.safe_load(text)["plan"] == {"tp": 2, "pp": 1, "sp": True, "dp": 8}
    assert main(["run", "mine.yaml"]) == 0
    assert "TP2 PP1 DP8" in capsys.readouterr().out


def test_remedies_of_refusals_work(tmp_path, capsys):
    source = str(LAUNCHES / "megatron_mixtral.sh")
    out = ["--out", str(tmp_path / "x.yaml")]
    assert main(["import-args", source, *out]) == 2 and "--define NNODES=" in capsys.readouterr().err
    first = ["import-args", source, *out, "--define", "NNODES=4"]
    assert main(first) == 2 and "--ignore moe-expert-capacity-factor" in capsys.readouterr().err
    assert main([*first, "--ignore", "moe-expert-capacity-factor"]) == 0
    plain = str(LAUNCHES / "deepspeed_auto.json")
    assert main(["import-args", plain, *out]) == 2 and "--model llama3_8b" in capsys.readouterr().err
    more = ["--model", "llama3_8b", "--set", "seq=4096"]
    assert main(["import-args", plain, *out, *more]) == 2 and "--chips 8" in capsys.readouterr().err
    assert main(["import-args", plain, *out, *more, "--chips", "8"]) == 0


@pytest.mark.parametrize(
    "read, values, words",
    [
        (megatron, GPT | {"cp-comm-type": "a2a"}, "--cp-comm-type 'a2a': not simulated; use one of p2p"),
        (megatron, GPT | {"context-parallel-algo": "ulysses_cp_algo"}, "use one of megatron_cp_algo"),
        (megatron, GPT | {"swap-attention": True}, "--ignore swap-attention"),
    ],
)
def test_another_way_round_the_context_is_named(read, values, words):
    with pytest.raises(InputError, match=words):
        read(values, "run.sh")


def test_groups_of_mics_shard_and_fewer_bits_are_told():
    """DeepSpeed's MiCS keeps a whole copy in every group; ZeRO++'s messages in int8 are not simulated."""
    zero = {"stage": 3, "mics_shard_size": 8, "zero_quantized_weights": True}
    launch = deepspeed({"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}, "ds.json")
    assert (launch.options["zero"], launch.options["hsdp"]) == (3, 8)
    assert any("fewer bits" in note for note in launch.notes)


def test_torchtitan_of_2024_and_mindformers_other_names():
    parallel = {"tensor_parallel_degree": 2, "data_parallel_degree": 4}
    launch = torchtitan({"model": {"name": "llama3", "flavor": "8B"}, "training": parallel}, "job.toml")
    assert (launch.run["shards"], launch.plan["tp"]) == (4, 2)
    model = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "qk_layernorm": True}
    assert mindformers({"model": {"model_config": model}}, "run.yaml").run["model"]["qk_norm"] is True
