#!/bin/bash
#SBATCH -J pretrain -p batch
#SBATCH -N 4
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:h100:8(S:0-1)
MODEL="--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --ffn-hidden-size 14336 --swiglu"
MODEL+=" --group-query-attention --num-query-groups 8 --untie-embeddings-and-output-weights --vocab-size 128256"
srun torchrun --nnodes $SLURM_JOB_NUM_NODES --nproc_per_node $SLURM_GPUS_ON_NODE pretrain_gpt.py $MODEL \
  --seq-length 8192 --max-position-embeddings 8192 --tensor-model-parallel-size 2 --sequence-parallel \
  --micro-batch-size 1 --global-batch-size 128 --train-iters 10000 --bf16 --use-distributed-optimizer \
  --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
