#!/bin/bash
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
OPTIONS=" --num-layers 24 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 --max-position-embeddings 2048 "
OPTIONS+=" --tensor-model-parallel-size 1 --pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 3"
OPTIONS="$OPTIONS --micro-batch-size 4 --global-batch-size 512 --bf16 --train-iters 1000 --vocab-size 50257"
srun python pretrain_gpt.py $OPTIONS --recompute-granularity full --recompute-method block --recompute-num-layers 1
