torchrun --nproc_per_node=4 --master_port=1234 train.py \
    --model_name_or_path meta-llama/Llama-2-7b-hf --bf16 \
    --num_train_epochs 3 --per-device-train-batch-size 4 --gradient-accumulation-steps 8 \
    --fsdp "full_shard auto_wrap" --fsdp_transformer_layer_cls_to_wrap LlamaDecoderLayer --tf32 True
