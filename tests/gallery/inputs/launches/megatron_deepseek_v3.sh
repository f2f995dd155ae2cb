torchrun --nproc_per_node 8 --nnodes 128 pretrain_gpt.py --num-layers 61 --hidden-size 7168 --ffn-hidden-size 18432 \
 --num-attention-heads 128 --multi-latent-attention --q-lora-rank 1536 --kv-lora-rank 512 --qk-head-dim 128 --qk-pos-emb-head-dim 64 \
 --v-head-dim 128 --qk-layernorm --swiglu --disable-bias-linear --normalization RMSNorm --untie-embeddings-and-output-weights \
 --position-embedding-type rope --vocab-size 129280 --seq-length 4096 --max-position-embeddings 4096 --attention-dropout 0 --hidden-dropout 0 \
 --num-experts 256 --moe-router-topk 8 --moe-ffn-hidden-size 2048 --moe-shared-expert-intermediate-size 2048 --moe-layer-freq "([0]*3+[1]*58)" \
 --moe-router-num-groups 8 --moe-router-group-topk 4 --moe-router-enable-expert-bias --moe-router-score-function sigmoid \
 --moe-token-dispatcher-type flex --moe-enable-deepep --mtp-num-layers 1 --mtp-loss-scaling-factor 0.1 --expert-tensor-parallel-size 1 \
 --tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 8 --expert-model-parallel-size 64 \
 --pipeline-model-parallel-layout "Et*3|(tt|)*29m|L" --micro-batch-size 1 --global-batch-size 8192 --fp8-format e4m3 --bf16 \
 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --recompute-granularity selective --recompute-modules mla_up_proj moe_act layernorm
