#!/bin/bash
# one script for every size: SIZE and CP come first
SIZE=8B
CP=1
case "$SIZE" in
  8B)
    MODEL="--num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32"
    TP=2; PP=1 ;;
  70B)
    MODEL="--num-layers 80 --hidden-size 8192 --ffn-hidden-size 28672 --num-attention-heads 64"
    TP=8; PP=4 ;;
  *) echo "unknown size $SIZE"; exit 1 ;;
esac
if [ "$TP" -gt 1 ]; then
  EXTRA="--sequence-parallel"
else
  EXTRA="--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
fi
if [[ "$CP" == 1 ]]; then BATCH=128; else BATCH=64; fi
for GPUS in 8; do
  srun -N 2 --ntasks-per-node=$GPUS --gpus-per-node=8 python pretrain_gpt.py $MODEL $EXTRA \
    --tensor-model-parallel-size $TP --pipeline-model-parallel-size $PP --context-parallel-size $CP \
    --group-query-attention --num-query-groups 8 --swiglu --normalization RMSNorm --disable-bias-linear \
    --untie-embeddings-and-output-weights --position-embedding-type rope --vocab-size 128256 \
    --seq-length 8192 --max-position-embeddings 8192 --micro-batch-size 1 --global-batch-size $BATCH \
    --bf16 --use-distributed-optimizer --train-iters 1000
done
echo finished
