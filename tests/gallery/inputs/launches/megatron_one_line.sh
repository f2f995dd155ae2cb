torchrun --nproc_per_node=8 --nnodes=2 --node_rank=0 pretrain_gpt.py \
  --num-layers=32 --hidden-size=4096 --ffn-hidden-size=14336 --num-attention-heads=32 \
  --group-query-attention --num-query-groups=8 --swiglu --disable-bias-linear --normalization RMSNorm \
  --untie-embeddings-and-output-weights --position-embedding-type rope --vocab-size 128256 \
  --attention-dropout 0.0 --hidden-dropout 0.0 --seq-length 8192 --max-position-embeddings 8192 \
  --tensor-model-parallel-size 2 --sequence-parallel --micro-batch-size 1 --global-batch-size 128 \
  --bf16 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --train-samples 1000000 \
  --lr 3e-4 --save /ckpt --log-interval 10
