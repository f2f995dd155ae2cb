torchrun --nproc_per_node 8 train.py --num-layers 30 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 \
 --pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 6 --decoder-last-pipeline-num-layers 7 --micro-batch-size 1 --global-batch-size 256 --bf16
