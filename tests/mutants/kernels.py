"""Faults of the kernels: what a query sees, the online softmax, edges of blocks, the ring, the pages."""

from tests.mutants import Mutant

ATTENTION, VISIBILITY, BLOCKWISE, RING, PAGED, TPU, TPU_BACKWARD, TILING = (
    f"stepaudio_jax/kernels/{name}.py"
    for name in ("attention", "visibility", "blockwise", "ring_attention", "paged_attention", "flash_tpu",
                 "flash_tpu_backward", "tiling")
)  # fmt: skip
FLASH, SEEN, OF_RING, OF_PAGES = (
    f"tests/kernels/test_{name}.py" for name in ("flash_attention", "visibility", "ring_attention", "paged_attention")
)
ONE_RING = f"{OF_RING}::test_a_ring_is_the_whole[4-True-True-xla]"

MUTANTS = (
    Mutant("a query does not see itself", VISIBILITY, "jnp.arange(1, q_len + 1) + ahead", "jnp.arange(q_len) + ahead",
           (f"{SEEN}::test_intervals_are_the_definition",)),  # fmt: skip
    Mutant("causal is not read", VISIBILITY, "    if causal:\n        # q_offset", "    if False:\n        # q_offset",
           (f"{SEEN}::test_intervals_are_the_definition",), wiring=True),  # fmt: skip
    Mutant("the query's offset is not read", VISIBILITY, "jnp.asarray(0 if q_offset is None else q_offset)",
           "jnp.asarray(0)", (f"{SEEN}::test_intervals_are_the_definition",), wiring=True),  # fmt: skip
    Mutant("the stride of positions is not read", VISIBILITY, "ahead // position_stride", "ahead",
           (f"{SEEN}::test_intervals_are_the_definition",), wiring=True),  # fmt: skip
    Mutant("padding sees padding", VISIBILITY, "same = (q_ids[:, :, None] == kv_ids[:, None]) & (q_ids != 0)[:, :, None]",
           "same = q_ids[:, :, None] == kv_ids[:, None]", (f"{SEEN}::test_intervals_are_the_definition",)),  # fmt: skip
    Mutant("padding is a segment of its own", VISIBILITY,
           "return Visible(jnp.where(ids == 0, 0, start), jnp.where(ids == 0, 0, stop))", "return Visible(start, stop)",
           (f"{SEEN}::test_intervals_are_the_definition",)),  # fmt: skip
    Mutant("segment ids do not reach what is seen", ATTENTION, "        q_segment_ids=q_segment_ids,\n        kv_segment_ids",
           "        q_segment_ids=None,\n        kv_segment_ids",
           (f"{FLASH}::test_queries_that_see_nothing_give_zero_and_no_gradient",), wiring=True),  # fmt: skip
    Mutant("causal does not reach what is seen", ATTENTION, "        causal=causal,\n        q_segment_ids",
           "        causal=True,\n        q_segment_ids",
           (f"{FLASH}::test_queries_that_see_nothing_give_zero_and_no_gradient",), wiring=True),  # fmt: skip
    Mutant("the offset of the keys does not reach what is seen", ATTENTION, "        kv_offset=kv_offset,\n        position",
           "        position", (f"{FLASH}::test_queries_that_see_nothing_give_zero_and_no_gradient",), wiring=True),  # fmt: skip
    Mutant("the scale is not read", ATTENTION, "float(q.shape[3] ** -0.5 if scale is None else scale)",
           "float(q.shape[3] ** -0.5)", (f"{FLASH}::test_a_custom_scale",), wiring=True),  # fmt: skip
    Mutant("the scale is one over the head's size", ATTENTION, "float(q.shape[3] ** -0.5 if scale is None else scale)",
           "float(q.shape[3] ** -1.0 if scale is None else scale)",
           ("tests/models/test_wiring.py::test_the_decoder_by_hand",)),  # fmt: skip
    Mutant("the gradient of the log-sum-exp is left out", ATTENTION,
           "preferred_element_type=jnp.float32) - dlse", "preferred_element_type=jnp.float32)",
           (f"{FLASH}::test_blockwise",)),  # fmt: skip
    Mutant("sums do not shrink with a new maximum", BLOCKWISE, "new_top, total * shrink + p.sum(-1)",
           "new_top, total + p.sum(-1)", (f"{FLASH}::test_blockwise",)),  # fmt: skip
    Mutant("the output does not shrink with a new maximum", BLOCKWISE, "return acc * shrink[..., None] + gained",
           "return acc + gained", (f"{FLASH}::test_blockwise",)),  # fmt: skip
    Mutant("keys that two blocks share count twice", BLOCKWISE,
           "(position >= jnp.maximum(start, index * self.block_kv))", "(position >= start)",
           (f"{FLASH}::test_blockwise",)),  # fmt: skip
    Mutant("the last block of keys is not visited", BLOCKWISE, "-(-bounds.stop.max(0) // self.block_kv)",
           "bounds.stop.max(0) // self.block_kv", (f"{FLASH}::test_blockwise",)),  # fmt: skip
    Mutant("the scale is missing from the keys' gradient", BLOCKWISE, "(dk * scale).astype(grad_dtype)",
           "dk.astype(grad_dtype)", (f"{FLASH}::test_blockwise",)),  # fmt: skip
    Mutant("the TPU kernel masks nothing in blocks it holds for full", TPU,
           "full = (block + 1 >= full_first) & (block + 1 < full_last)", "full = block + 1 >= 0",
           (f"{FLASH}::test_the_tpu_kernels_do_not_race[packed]",)),  # fmt: skip
    Mutant("the TPU kernel's sums do not shrink", TPU, "total[...] = total[...] * shrink + p.sum",
           "total[...] = total[...] + p.sum", (f"{FLASH}::test_the_tpu_kernels_do_not_race[causal]",)),  # fmt: skip
    Mutant("the TPU kernel's log-sum-exp is to base two", TPU, "(top[...] + jnp.log2(divisor)) / LOG2_E",
           "(top[...] + jnp.log2(divisor))", (f"{FLASH}::test_the_tpu_kernels_do_not_race[causal]",)),  # fmt: skip
    Mutant("heads are dealt to key heads in turns", TILING,
           "x = x.reshape(batch, -1, block, kv_heads, heads // kv_heads, *rest)\n    x = x.transpose(0, 3, 1, 4, 2,",
           "x = x.reshape(batch, -1, block, heads // kv_heads, kv_heads, *rest)\n    x = x.transpose(0, 4, 1, 3, 2,",
           ("tests/models/test_wiring.py::test_the_decoder_by_hand",)),  # fmt: skip
    # The ring.
    Mutant("a shard's keys are told to be its own", RING, "kv_offset=(shard - step) % shards,", "kv_offset=shard,",
           (ONE_RING,), wiring=True),  # fmt: skip
    Mutant("keys travel without their segment ids", RING,
           "        visible = _visible(q, segment_ids, kv[2], index, axis_name, causal)\n        part, part_lse",
           "        visible = _visible(q, segment_ids, segment_ids, index, axis_name, causal)\n        part, part_lse",
           (ONE_RING,), wiring=True),  # fmt: skip
    Mutant("parts of the ring count alike", RING, "part * jnp.exp(part_lse - top)[..., None]", "part",
           (ONE_RING,)),  # fmt: skip
    Mutant("the keys' gradients end a shard from home", RING,
           "dk, dv = _pass_on(dkv, axis_name)  # the last step home", "dk, dv = dkv", (ONE_RING,)),  # fmt: skip
    Mutant("causal does not reach the ring", RING, "return _ring(q, k, v, segment_ids, axis_name, causal, settings)",
           "return _ring(q, k, v, segment_ids, axis_name, True, settings)",
           (f"{OF_RING}::test_a_ring_is_the_whole[2-False-True-xla]",), wiring=True),  # fmt: skip
    # Pages.
    Mutant("pages are read in the pool's order", PAGED, "jax.lax.dynamic_slice(table, (0, index * pages)",
           "jax.lax.dynamic_slice(jnp.sort(table, axis=1), (0, index * pages)",
           (f"{OF_PAGES}::test_gathered_pages",), wiring=True),  # fmt: skip
    Mutant("a new token does not see itself in the cache", PAGED, "jnp.where(at <= position[:first_rows]",
           "jnp.where(at < position[:first_rows]", (f"{OF_PAGES}::test_gathered_pages",)),  # fmt: skip
    Mutant("rows get each other's output", PAGED, "jnp.zeros_like(out).at[order].set(out /", "jnp.zeros_like(out).at[:].set(out /",
           (f"{OF_PAGES}::test_gathered_pages",), wiring=True),  # fmt: skip
    Mutant("keys and values change places in a page", PAGED, "new = jnp.stack([k, v], 2)", "new = jnp.stack([v, k], 2)",
           (f"{OF_PAGES}::test_slots_out_of_the_pool_are_dropped",)),  # fmt: skip
    Mutant("the scale does not reach the pages", PAGED, "attend(q, kv_pages, starts, counts, page_table, scale)",
           "attend(q, kv_pages, starts, counts, page_table, 1.0)", (f"{OF_PAGES}::test_gathered_pages",), wiring=True),  # fmt: skip
)
