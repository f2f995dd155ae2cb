"""Nodes and chips that a batch script asks Slurm for, in every spelling, end in the same number of chips."""

import pytest

from sim.scenario.launch.read import read_launch, scenario_of
from sim.scenario.launch.slurm import asked, variables


@pytest.mark.parametrize(
    "lines",
    [
        "#SBATCH --nodes=4\n#SBATCH --gpus-per-node=8",
        "#SBATCH --nodes 4\n#SBATCH --gpus-per-node 8",
        "#SBATCH -N 4 --gpus-per-node=h100:8",
        "#SBATCH -N4\n#SBATCH --gres=gpu:8",
        "#SBATCH --nodes=4 --gres=gpu:a100:8(S:0-1)",
        "#SBATCH --nodes=4-8\n#SBATCH --gres=nvme:1,gpu:8",
        "#SBATCH -N 4\n#SBATCH -G 32",
        "#SBATCH -N 4\n#SBATCH --gpus=32   # all of them",
        "#SBATCH -N 4\r\n#SBATCH --ntasks-per-node=8\r\n#SBATCH --gpus-per-task=1\r",
        "#SBATCH -N 2 --gpus-per-node=8\n#SBATCH --nodes=4",
    ],
)
def test_four_nodes_of_eight(lines, tmp_path):
    wanted = asked(lines)
    assert (wanted["nodes"], wanted["gpus-per-node"]) == ("4", "8")
    script = tmp_path / "job.sh"
    words = (
        "--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --seq-length 4096 --max-position-embeddings 4096"
    )
    words += " --tensor-model-parallel-size 4 --micro-batch-size 1 --global-batch-size 128 --bf16"
    script.write_bytes(f"#!/bin/bash\n{lines}\nsrun python pretrain_gpt.py {words}\n".encode())
    assert scenario_of(read_launch(script), "job")["chips"] == 32
    script.write_text(
        f"#!/bin/bash\n{lines}\ntorchrun --nnodes $SLURM_NNODES --nproc_per_node 8 pretrain_gpt.py {words}\n"
    )
    assert scenario_of(read_launch(script), "job")["chips"] == 32
    assert scenario_of(read_launch(script, defined=["SLURM_NNODES=2"]), "job")["chips"] == 16  # said from outside


def test_one_task_a_node_starts_the_launcher_that_starts_eight(tmp_path):
    script = tmp_path / "job.sh"
    words = (
        "--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --seq-length 4096 --max-position-embeddings 4096"
    )
    script.write_text(
        "#SBATCH --nodes=4 --ntasks-per-node=1\n"
        f"srun torchrun --nproc_per_node=8 --nnodes=2 x.py {words} --micro-batch-size 1 --global-batch-size 128\n"
    )
    assert scenario_of(read_launch(script), "job")["chips"] == 16


@pytest.mark.parametrize(
    "lines, wanted",
    [
        ("", {}),
        ("#SBATCH -J nodes -p gpu", {}),  # a name and a partition
        ("##SBATCH -N 4", {}),  # switched off
        ("#SBATCH --gres=nvme:1", {}),
        ("#SBATCH --gres=gpu", {"gpus-per-node": "1"}),
        ("#SBATCH -n 16 -N 2", {"nodes": "2", "ntasks-per-node": "8"}),
        ("#SBATCH -n 15 -N 2", {"nodes": "2"}),  # not the same on each
        ("#SBATCH -G 8", {"gpus-per-node": "8"}),  # one node
        ("#SBATCH --nodes=many", {}),
        ("#SBATCH --nodes", {}),
        ("#SBATCH --nodes=99999999999", {}),
    ],
)
def test_what_is_asked(lines, wanted):
    assert asked(lines) == wanted


def test_the_job_sees_what_was_asked():
    assert variables({"nodes": "4"}) == {"SLURM_NNODES": "4", "SLURM_JOB_NUM_NODES": "4"}
    assert variables({"gpus-per-node": "8"})["SLURM_GPUS_ON_NODE"] == "8"
