#!/bin/bash
OUT=checkpoints/llama
deepspeed --num_nodes 2 --num_gpus=8 train.py \
    --deepspeed ./deepspeed_zero2.json \
    --model_name_or_path meta-llama/Meta-Llama-3-8B \
    --data_path ./data.json --bf16 True --output_dir $OUT \
    --per_device_train_batch_size 2 --gradient_accumulation_steps 4 \
    --max_steps 100 --save_strategy "steps" --learning_rate 2e-5 \
    --gradient_checkpointing True --model_max_length 4096
