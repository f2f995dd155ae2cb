"""Single faults that a test must see, each with the test that does: `python -m tests.mutants` tries them all.

A row is a file, the text that is there, the text that takes its place, and what to run. Neighbours of a fault in the
same function stand beside it: a fault stands for its kind.
"""

from typing import NamedTuple


class Planted(NamedTuple):
    """One fault. `old` stands in the file exactly once."""

    file: str
    old: str
    new: str
    tests: str


def _tests(file: str, *names: str) -> str:
    return " ".join(f"tests/minglm/{file}::test_{name}" for name in names)


ATTENTION = _tests(
    "model/test_attention.py",
    "the_indexer_is_its_formula_step_by_step",
    "the_indexers_graph_is_kept_only_for_a_kl_that_is_differentiated",
    "the_kl_is_that_of_the_formula_on_the_layers_own_attention",
    "decoding_folds_the_scales_into_the_matrices",
)
OPTIM = _tests(
    "training/test_optim.py",
    "muon_over_several_steps_is_the_published_rule",
    "adamw_decays_matrices_and_embeddings_and_no_vector",
    "clipping_is_by_the_joint_norm_and_leaves_small_gradients_alone",
    "schedule_by_hand",
    "threads_share_the_matrices_out_and_each_is_moved_once",
)
HALVES = _tests(
    "training/test_step_law.py",
    "two_threads_with_half_of_the_rows_each",
    "the_first_half_is_added_first_whichever_thread_is_faster",
    "terms_of_one_sum_have_a_gradient_each",
    "a_fault_in_the_other_half_is_told_and_leaves_no_gradient",
    "a_batch_stays_whole_where_two_threads_would_not_pay",
)
CHECKPOINT = _tests("training/test_checkpoint.py", "everything_is_on_the_disk_before_the_folder_gets_its_name")
STEP = _tests(
    "training/test_step_law.py",
    "each_part_of_the_loss_has_its_own_weight",
    "validation_is_the_mean_over_tokens_of_the_forward_that_a_user_runs",
    "a_step_has_the_rate_of_its_number_and_rounds_where_it_should",
)
CHAT = _tests(
    "data/test_chat.py",
    "packing_by_hand",
    "rows_are_numbered_through_the_steps_and_none_comes_twice",
    "the_mixed_loader_keeps_the_corpus_rows_that_it_does_not_replace",
)
CORPUS = _tests(
    "data/test_corpus.py",
    "the_share_held_out_is_one_in_twenty_by_the_names_hash",
    "the_cut_of_a_single_document_is_its_last_tenth",
)
TALKS = _tests("data/test_conversations.py", "a_tenth_of_the_conversations_is_held_out_by_their_hash")
CONFIG = _tests(
    "test_config.py",
    "layers_with_an_indexer_by_frequency_and_pattern",
    "attention_flops_are_counted_key_by_key",
    "training_flops_are_three_forwards_and_the_module_runs_once_for_each_depth",
    "cache_bytes_by_hand",
)
NAMES = "tests/minglm/interop/test_names.py"
FORMATS = _tests(
    "quant/test_formats.py",
    "cut_groups_keep_their_own_scale",
    "pieces_are_short_enough_for_exact_sums",
    "int8_rows_and_tokens_have_a_scale_each",
    "fp8_activations_have_a_scale_for_each_tile_of_a_token",
)
PACKED = _tests("quant/test_modules.py", "training_rounds_every_matrix_to_the_bits_of_inference")
OBJECTIVES = _tests(
    "rl/test_objectives.py",
    "sequences_that_count_nothing_are_no_part_of_the_average",
    "figures_of_the_log_by_hand",
    "mismatch_kl_estimates_kl_of_behaviour_from_the_trainer",
)
POLICY = _tests(
    "rl/test_modes.py",
    "weights_go_out_after_every_k_th_update",
    "what_is_too_stale_by_hand",
    "how_many_groups_may_start_by_hand",
)
COORDINATOR, TRAINER = "tests/minglm/rl/test_coordinator.py", "tests/minglm/rl/test_trainer.py"

_TABLE: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("model/attention.py", ATTENTION): [
        # indexer graph kept where no KL is wanted
        ("set_grad_enabled(ctx.indexer_grad and ctx.indexer_loss)", "set_grad_enabled(ctx.indexer_grad)"),
        ("set_grad_enabled(ctx.indexer_grad and ctx.indexer_loss)", "set_grad_enabled(ctx.indexer_loss)"),
        ("self.indexer(x.detach(), q.compressed", "self.indexer(x, q.compressed"),
        ("q.compressed.detach(), ctx.rope", "q.compressed, ctx.rope"),
        ("with torch.set_grad_enabled(ctx.indexer_grad):", "with torch.set_grad_enabled(False):"),
        ("index.k, index.w, queries, keys, self.scale,", "index.k, index.w, queries, keys, 1.0,"),
        ("index.topk_indices, p, ctx.query_weights)", "index.topk_indices, p)"),
    ],
    ("model/indexer.py", ATTENTION): [
        # scores not divided by sqrt(heads): choice unchanged, KL wrong
        ("* (self.heads * self.width) ** -0.5", "* self.width**-0.5"),
        ("* (self.heads * self.width) ** -0.5", "* self.heads**-0.5"),
        ("k = self.k_norm(self.wk(x))", "k = self.wk(x)"),
        ("k = torch.cat((apply_rope(k[..., :r], rope), k[..., r:]), -1)", "pass"),
        ("q = torch.cat((apply_rope(q[..., :r], rope), q[..., r:]), -1)", "pass"),
    ],
    ("inference/absorbed.py", ATTENTION): [
        # softmax scale not folded
        (".unflatten(0, (mla.num_heads, -1)) * mla.scale", ".unflatten(0, (mla.num_heads, -1))"),
        ("* (ix.heads * ix.width) ** -0.5", "* ix.width**-0.5"),
        ("torch.bmm(up_k.transpose(1, 2), w_q[:, :nope])", "torch.bmm(up_k.transpose(1, 2), w_q[:, -nope:])"),
    ],
    ("training/halves.py", HALVES): [
        ("slice(middle, rows))]", "slice(middle - 1, rows))]"),
        ("flops < WORTH_FLOPS", "flops > WORTH_FLOPS"),
        ("later = other.submit(work, parts[1])", "later = other.submit(work, parts[0])"),
        ("zip(learns, first[1], second[1], strict=True)", "zip(learns, second[1], first[1], strict=True)"),
        ("gradient if p.grad is None else p.grad + gradient", "gradient"),
        ("p.grad + gradient", "p.grad.add_(gradient)"),
        # threads stay halved
        ("            torch.set_num_threads(threads)\n", "            pass\n"),
    ],
    ("training/optim.py", OPTIM): [
        # no Nesterov
        ("p.grad.lerp(buffer, self.momentum)  # Nesterov", "buffer.clone()"),
        ("buffer.lerp_(p.grad, 1 - self.momentum)", "buffer.lerp_(p.grad, self.momentum)"),
        ("self._muon_step(self.lr * scale)", "self._muon_step(self.lr)"),
        ("self.adam_matrices, self.adam_lr * scale)", "self.adam_matrices, self.adam_lr)"),
        ("self.adam_matrices, self.adam_lr * scale)", "self.adam_matrices, self.lr * scale)"),
        # a thread works on what another has
        ("self._muon_share(names, lr), live", "self._muon_share(live, lr), live"),
        # weight decay on norms and biases
        ("[p for p in params if p.ndim >= 2]", "params"),
        ("[p for p in params if p.ndim >= 2]", "[p for p in params if p.ndim >= 3]"),
        ("torch._foreach_add_(denominators, self.eps)", "torch._foreach_add_(denominators, self.eps**0.5)"),
        ("1 - b2**self.steps", "1 - b2**(self.steps + 1)"),
        # clipping scales small gradients up
        ("torch.clamp(limit / (norm + 1e-6), max=1.0)", "limit / (norm + 1e-6)"),
        ("torch.clamp(limit / (norm + 1e-6), max=1.0)", "torch.clamp(1 / (norm + 1e-6), max=1.0)"),
        ("torch.linalg.vector_norm(torch.stack(norms))", "torch.stack(norms).sum()"),
        ("torch.linalg.vector_norm(torch.stack(norms))", "torch.stack(norms).max()"),
        # Muon without weight decay
        ("            p.mul_(1 - lr * self.weight_decay)\n", ""),
        ("p.mul_(1 - lr * self.weight_decay)", "p.mul_(1 - self.lr * self.weight_decay)"),
        ("0.2 * math.sqrt(max(m, n))", "0.2 * math.sqrt(min(m, n))"),
        ("(step + 1) / warmup", "step / warmup"),
        ("(1 - final_fraction) * 0.5", "0.5"),
    ],
    ("training/loop.py", STEP): [
        # validation always dense
        ('mode = "dense" if self.recipe.mode == "dense" else "sparse"', 'mode = "dense"'),
        ('mode = "dense" if self.recipe.mode == "dense" else "sparse"', "mode = self.recipe.mode"),
        ("total + float(loss) * n, count + n", "total + float(loss), count + 1"),
        ("mode=mode, doc_start=doc_start, mtp=False)", "mode=mode, mtp=False)"),
        # validation of a QAT run without rounding
        ("            with self.rounding:\n                row", "            if True:\n                row"),
        ("        self.rounding.off()  # the update", "        # the update"),
        ("        self.rounding.on()\n", ""),
        # learning-rate schedule restarts every 7 steps
        ("cosine_with_warmup(self.step, r.steps,", "cosine_with_warmup(self.step % 7, r.steps,"),
        ("cosine_with_warmup(self.step, r.steps,", "cosine_with_warmup(self.step + 1, r.steps,"),
        ("self.optimizer.step(scale)", "self.optimizer.step()"),
        ('"lr": r.lr * scale,', '"lr": r.lr,'),
        ("self.loader.batch(self.step * r.grad_accum + i)", "self.loader.batch(i)"),
        # balance loss weighted with the indexer's weight
        ("(r.balance_weight, out.balance_loss)", "(r.indexer_weight, out.balance_loss)"),
        ("(r.mtp_weight, out.mtp_loss)", "(1.0, out.mtp_loss)"),
        ("(r.indexer_weight, out.indexer_kl)", "(r.mtp_weight, out.indexer_kl)"),
        ("return r.indexer_weight * out.indexer_kl, out", "return out.indexer_kl, out"),
        ('r.mode != "warmup" and self.step >= r.first_lesson', 'r.mode != "warmup"'),
    ],
    ("atomic.py", CHECKPOINT): [
        # checkpoint files not flushed before the rename
        ("    for path in folder.iterdir():\n        flush(path)\n", ""),
        ("        flush(path)\n    flush(folder)\n", "        flush(path)\n"),
        ("    os.replace(folder, final)\n    flush(final.parent)\n", "    os.replace(folder, final)\n"),
        ("        os.fsync(handle)\n", "        pass\n"),
    ],
    ("data/chat.py", CHAT): [
        # padding is placed in document 0
        ("        start[r, first:] = first  # padding sees padding only\n", ""),
        ("torch.where(start[:, 1:] == start[:, :-1], targets, IGNORE)", "targets"),
        ("torch.where(counted[:, 1:], tokens[:, 1:], IGNORE)", "torch.where(counted[:, :-1], tokens[:, 1:], IGNORE)"),
        ("(len(rows), seq_len + 1), pad, dtype", "(len(rows), seq_len + 1), 0, dtype"),
        # every batch repeats the same rows
        ("self._row(step * self.batch_size + r)", "self._row(r)"),
        ("self._row(step * self.batch_size + r)", "self._row(step + r)"),
        ("default_rng([self.seed, 1, row])", "default_rng([1, row])"),
        ("int((row + 1) * self.share) > int(row * self.share)", "int((row + 1) * self.share) >= int(row * self.share)"),
    ],
    ("data/corpus.py", CORPUS): [
        # twice as much validation text
        ("VALIDATION_SHARE = 0.05", "VALIDATION_SHARE = 0.1"),
        ("CUT_PARTS = 10 ", "CUT_PARTS = 5 "),
        ("len(self.text) // (2 * CUT_PARTS)", "len(self.text) // CUT_PARTS * 0"),
        ("if side[d.text] is kind] for kind in (False, True)", "if side[d.text] is kind] for kind in (True, False)"),
    ],
    ("data/conversations.py", TALKS): [
        ("VALIDATION_SHARE = 0.1 ", "VALIDATION_SHARE = 0.2 "),
        ("return _hash(messages) < VALIDATION_SHARE", "return _hash(messages) > VALIDATION_SHARE"),
    ],
    ("interop/huggingface.py", NAMES): [
        # MTP norm under another name than the published checkpoint
        ('"norm.weight": "shared_head.norm.weight"', '"norm.weight": "norm.weight"'),
        ('"enorm.weight": "enorm.weight"', '"enorm.weight": "hnorm.weight"'),
        ('("gate_proj", "up_proj"), matrix', '("up_proj", "gate_proj"), matrix'),
    ],
    ("interop/compressed_tensors.py", NAMES): [
        # matrices with a partial last FP8 block are written quantised
        ("all(size <= scheme.block or size % scheme.block == 0 for size in matrix)", "True"),
        ("all(size <= scheme.block or size % scheme.block == 0 for size in matrix)", "matrix[1] % scheme.block == 0"),
        ("            kept.append(name)\n", ""),
        ('("weight_shape", torch.tensor(matrix,', '("weight_shape", torch.tensor(matrix[::-1],'),
    ],
    ("config_file.py", CONFIG): [
        # index_topk_freq read off by one
        ("max(i - offset + 1, 0) % every", "max(i - offset, 0) % every"),
        ('raw.pop("index_skip_topk_offset", 2)', 'raw.pop("index_skip_topk_offset", 1)'),
        # index_topk_pattern ignored
        ("    if pattern is not None:\n", "    if False:\n"),
    ],
    ("config.py", CONFIG): [
        # sparse attention's first k queries counted with k keys
        ("(k * (k + 1) / 2 + (seq - k) * k) / seq", "float(k)"),
        ("(k * (k + 1) / 2 + (seq - k) * k) / seq", "(k * (k - 1) / 2 + (seq - k) * k) / seq"),
        ("(self.qk_head_dim + self.v_head_dim) * read", "self.qk_head_dim * read"),
        ("(self.index_head_dim + 1) * visible", "self.index_head_dim * visible"),
        ("(self.index_head_dim + 1) * visible", "(self.index_head_dim + 1) * read"),
        ("forward += self.mtp_depth * (2.0 * (layer + head) + read)", "forward += 2.0 * (layer + head) + read"),
        ("return 3.0 * forward", "return 2.0 * forward"),
        ("_width(dtype) * self.num_full_indexers", "_width(dtype) * self.num_hidden_layers"),
    ],
    ("quant/int8.py", FORMATS): [
        # cut groups take another group's scale
        (".repeat_interleave(pieces, -1)", ".repeat(1, pieces)"),
        ("scale = x.abs().amax(-1, keepdim=True) / LARGEST", "scale = x.abs().amax() / LARGEST"),
        ("(width // p) * LARGEST**2 < EXACT", "True"),
    ],
    ("quant/qat.py", PACKED): [
        # QAT rounds gate and up as one matrix
        ("master.chunk(2, -2) if fused else (master,)", "(master,)"),
        ("(module.down_proj, scheme, False)", "(module.down_proj, scheme, True)"),
    ],
    ("quant/fp8.py", FORMATS): [
        ("scale = tiles.abs().amax(-1,", "scale = tiles.abs().amax((-1, -2),"),
    ],
    ("rl/objectives.py", OBJECTIVES): [
        # sequence average counts empty sequences
        ("(counts > 0).sum().clamp(min=1)", "len(counts)"),
        ('mask if average == "token" else mask.any(1)', 'mask if average == "token" else mask[:, 0] >= 0'),
        ("(values.sum(1) / counts.clamp(min=1)).sum()", "values.sum()"),
        # mismatch KL in the other direction
        ("k3 = gap.clamp(-_LOG_LIMIT, _LOG_LIMIT).exp() - 1 - gap", "k3 = (-gap).exp() - 1 + gap"),
        ("k3 = gap.clamp(-_LOG_LIMIT, _LOG_LIMIT).exp() - 1 - gap", "k3 = -gap"),
        ("ppo_kl=float((b.old - b.logp)", "ppo_kl=float((b.logp - b.old)"),
        ("(A < 0) & (r < 1 - clip.low)", "(A < 0) & (r > 1 + clip.high)"),
        ("mismatch_max=float(gap.abs().max())", "mismatch_max=float(gap.max())"),
    ],
    ("rl/modes.py", POLICY): [
        # pushes one update early
        ("return updates % (self", "return (updates + 1) % (self"),
        ("version - oldest_version > self", "version - oldest_version >= self"),
        ("status.finished >= self.prompts_per_batch", "status.finished > self.prompts_per_batch"),
        ("self.submit_at_once * 2 - (", "self.submit_at_once - ("),
    ],
    ("rl/loop.py", COORDINATOR): [
        # glm5: optimiser not reset after a push
        ("self.trainer.reset_next = syncs and self.policy.resets_optimizer_after_weight_sync", "pass"),
        ("syncs and self.policy.resets_optimizer_after_weight_sync", "self.policy.resets_optimizer_after_weight_sync"),
        ("version + 1 if syncs else None", "version + 1"),
        ("too_stale(self.status.version, g.oldest_version)", "too_stale(self.status.version, g.version)"),
        ("self.ready.sort(key=lambda g: (g.version, g.index))", "pass"),
    ],
    ("rl/rollout_pool.py", COORDINATOR): [
        # a sample that comes twice is taken twice
        ("if group is None or group.samples[k].done:", "if group is None:"),
        ("new_tokens = len(result.tokens) - len(sample.tokens)", "new_tokens = len(result.tokens)"),
        ("if not sample.done:\n                sample.begin", "if True:\n                sample.begin"),
    ],
    ("rl/trainer.py", TRAINER): [
        # mask_off_policy keeps the stale tokens
        ("            mask &= ~stale\n", "            pass\n"),
        ("            mask &= ~stale\n", "            mask &= stale\n"),
        ("stale=[v < version for v in sample.versions]", "stale=[v <= version for v in sample.versions]"),
        # micro-batches weighted equally instead of by tokens
        ("share = counted(m.mask, clip.average) / max(divisor, 1.0)", "share = 1 / len(micro)"),
        ("share = counted(m.mask, clip.average) / max(divisor, 1.0)", 'share = counted(m.mask, "token") / tokens'),
        ("(loss * share).backward()", "loss.backward()"),
        # pi_old recomputed in every optimiser step
        ("old = logp.detach() if s.minibatches == 1 else self._old(m)", "old = logp.detach()"),
        ("logits.float() / self.settings.temperature", "logits.float()"),
        ("            self.optimizer = self._new_optimizer()\n        rows", "            pass\n        rows"),
        ("slice(r.start - 1, len(r.tokens) - 1)", "slice(r.start, len(r.tokens))"),
    ],
}  # fmt: skip

PLANTED = [
    Planted(f"minglm/{file}", old, new, tests) for (file, tests), changes in _TABLE.items() for old, new in changes
]
