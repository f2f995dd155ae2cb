"""The latent cache: sizes as the config's arithmetic says, writes in place, refusals."""

import pytest
import torch

from minglm.config import ModelConfig
from minglm.errors import InputError
from minglm.model.cache import LatentCache


@pytest.mark.parametrize("name", ["nano", "mini", "bench", "small"])
def test_bytes_equal_the_arithmetic(name):
    config = ModelConfig.named(name)
    cache = LatentCache(config, batch=3, max_len=7)
    per_token = config.kv_cache_bytes_per_token("fp32") + config.indexer_cache_bytes_per_token("fp32")
    assert cache.nbytes == 3 * 7 * per_token


def test_glm5_in_bf16_is_the_published_size():
    cache = LatentCache(ModelConfig.named("glm5"), 1, 10, torch.bfloat16, "meta")
    assert cache.latent.nbytes == 10 * 89_856 and cache.index_keys.nbytes == 10 * 19_968


def test_shared_layers_keep_no_indexer_keys():
    config = ModelConfig.named("nano", indexer_types=("full", "shared", "full"))
    cache = LatentCache(config, 1, 8)
    assert cache.index_keys.shape[0] == 2
    cache.append_index_key(2, torch.ones(1, 3, config.index_head_dim))
    assert cache.index_keys[1, 0, :3].min() == 1 and cache.index_keys[0].abs().max() == 0


def test_append_advance_truncate():
    config = ModelConfig.named("nano")
    cache = LatentCache(config, 2, 8)
    width = config.kv_lora_rank + config.qk_rope_head_dim
    first, second = torch.randn(2, 5, width), torch.randn(2, 2, width)
    cache.append(1, first)
    cache.advance(5)
    torch.testing.assert_close(cache.append(1, second), torch.cat((first, second), 1))
    cache.advance(2)
    with pytest.raises(InputError, match="max_len=8.*max_len=9"):
        cache.append(1, second)
    cache.truncate(5)
    torch.testing.assert_close(cache.append(1, second[:, :1]), torch.cat((first, second[:, :1]), 1))
    with pytest.raises(InputError, match="truncate"):
        cache.truncate(6)
