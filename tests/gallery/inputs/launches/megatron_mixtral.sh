MODEL_ARGS=(--num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 --group-query-attention --num-query-groups 8
 --swiglu --disable-bias-linear --normalization RMSNorm --untie-embeddings-and-output-weights --position-embedding-type rope
 --seq-length 4096 --max-position-embeddings 32768 --vocab-size 32000 --attention-dropout 0 --hidden-dropout 0)
MOE_ARGS=(--num-experts 8 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2 --moe-grouped-gemm
 --moe-token-dispatcher-type alltoall --moe-expert-capacity-factor 1.0)
torchrun --nproc_per_node 8 --nnodes ${NNODES} pretrain_gpt.py ${MODEL_ARGS[@]} ${MOE_ARGS[@]} --tensor-model-parallel-size 1 \
 --pipeline-model-parallel-size 4 --expert-model-parallel-size 8 --micro-batch-size 1 --global-batch-size 256 --bf16 --use-distributed-optimizer
