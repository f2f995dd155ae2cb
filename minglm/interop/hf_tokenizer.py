"""What transformers needs beside weights to chat as we do: special tokens, padding, chat template, and where to stop.

    tokenizer.json           the vocabulary, as it is
    tokenizer_config.json    which tokens begin, end and pad, and the chat template
    generation_config.json   their ids, so that `generate` ends an answer where we do

The template writes what `minglm.data.chat.encode_chat` encodes. One difference remains: transformers takes a special
token that a user writes out for the token itself, here it stays plain text.
"""

from __future__ import annotations

from pathlib import Path

from minglm import atomic
from minglm.config import ModelConfig
from minglm.data.tokenizer import Tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def export_tokenizer(tokenizer: Tokenizer, config: ModelConfig, folder: str | Path) -> list[Path]:
    """Write `FILES` into a folder that holds a model of this config; returns their paths."""
    folder = Path(folder)
    ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    tokenizer.save(folder / "tokenizer.json")
    atomic.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{name}_token": tokenizer.token(index) for name, index in ids.items()},
            "additional_special_tokens": [
                tokenizer.token(index) for index in (tokenizer.system, tokenizer.user, tokenizer.assistant)
            ],
            "chat_template": CHAT_TEMPLATE,
            "model_max_length": config.max_position_embeddings,
            "padding_side": "left",  # answers go on at the right
            "clean_up_tokenization_spaces": False,
        },
    )
    atomic.write_json(folder / "generation_config.json", {f"{name}_token_id": index for name, index in ids.items()})
    return [folder / name for name in FILES]
