torchrun --nproc_per_node 8 --nnodes 4 train.py --num-layers 30 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 \
 --max-position-embeddings 2048 --pipeline-model-parallel-size 4 --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split \
 --micro-batch-size 1 --global-batch-size 256 --bf16 --vocab-size 50257
