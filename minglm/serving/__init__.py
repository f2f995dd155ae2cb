"""An OpenAI-compatible endpoint over the rollout engine: `minglm serve --checkpoint runs/demo/sft`."""
