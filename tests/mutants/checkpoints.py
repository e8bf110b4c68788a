"""Faults of checkpoints and of their conversion: names, axes, types, checksums, parts, adapters."""

from tests.mutants import Mutant

CHECKPOINT, ADAPTERS, CHECKSUMS, RUN, LAYOUT = (
    f"stepaudio_jax/checkpoints/{name}.py" for name in ("checkpoint", "adapters", "checksums", "run", "layout")
)
NAMES = "stepaudio_jax/models/hf_names.py"
TRANSFER, PEFT, ADAPTED, FROM_HF, TO_HF, SOURCES, VERIFY, INITIALISE = (
    f"checkpoints_convert/{name}.py"
    for name in ("transfer", "peft", "adapted", "from_hf", "to_hf", "sources", "verify", "initialise")
)
OF_CHECKPOINT, OF_ADAPTERS, OF_RUN, PLACED = (
    f"tests/checkpoints/test_{name}.py" for name in ("checkpoint", "adapters", "run", "placement")
)
ROUND, OF_PEFT, BAD = (f"tests/checkpoints_convert/test_{name}.py" for name in ("round_trip", "peft", "bad_input"))
WIRING, BY_HAND = "tests/checkpoints_convert/test_wiring.py", "tests/models/test_wiring.py"

MUTANTS = (
    # Names and axes.
    Mutant("linear weights are not transposed", NAMES, '"linear": (1, 0), ', '"linear": (0, 1), ',
           (f"{BY_HAND}::test_the_decoder_by_hand",)),  # fmt: skip
    Mutant("convolutions are turned the other way", NAMES, '"conv": (2, 1, 0)}', '"conv": (2, 0, 1)}',
           (f"{BY_HAND}::test_encoder_and_adaptor_by_hand",)),  # fmt: skip
    Mutant("gate and up projections change names", NAMES, '"mlp.gate_proj.weight": ("gate_proj.kernel", "linear"),\n'
           '    "mlp.up_proj.weight": ("up_proj.kernel", "linear"),',
           '"mlp.gate_proj.weight": ("up_proj.kernel", "linear"),\n'
           '    "mlp.up_proj.weight": ("gate_proj.kernel", "linear"),',
           (f"{BY_HAND}::test_the_decoder_by_hand",), wiring=True),  # fmt: skip
    Mutant("the two norms of a layer change names", NAMES,
           '"input_layernorm.weight": ("input_layernorm.scale", "same"),',
           '"input_layernorm.weight": ("post_attention_layernorm.scale", "same"),',
           (f"{BY_HAND}::test_the_decoder_by_hand",), wiring=True),  # fmt: skip
    Mutant("keys and values change names", NAMES, '"self_attn.k_proj.weight": ("k_proj.kernel", "linear"),',
           '"self_attn.k_proj.weight": ("v_proj.kernel", "linear"),',
           (f"{BY_HAND}::test_the_decoder_by_hand",), wiring=True),  # fmt: skip
    Mutant("every layer is the first", NAMES, 'add(f"model.layers.{i}.{name}", f"decoder.layers.{ours}", order, i)',
           'add(f"model.layers.{i}.{name}", f"decoder.layers.{ours}", order, 0)',
           (f"{ROUND}::test_the_model_holds_what_the_files_say",), wiring=True),  # fmt: skip
    Mutant("tied embeddings have a head in the release", NAMES, "if not config.decoder.tie_word_embeddings:", "if True:",
           (f"{BY_HAND}::test_the_decoder_by_hand",), wiring=True),  # fmt: skip
    # Our folders.
    Mutant("dtype is not read", CHECKPOINT, "jnp.dtype(dtype or theirs[name].dtype)", "jnp.dtype(theirs[name].dtype)",
           (f"{OF_CHECKPOINT}::test_it_reads_in_another_dtype",), wiring=True),  # fmt: skip
    Mutant("parameters are loaded in float32", CHECKPOINT, "jnp.dtype(dtype or theirs[name].dtype)",
           "jnp.dtype(dtype or jnp.float32)", ("tests/test_shipped.py::test_it_is_the_preset",), wiring=True),  # fmt: skip
    Mutant("placement is not read", CHECKPOINT, "(placement or _first_device)(axes)", "_first_device(axes)",
           (f"{PLACED}::test_equal_values_on_any_mesh",), wiring=True),  # fmt: skip
    Mutant("shapes are not compared", CHECKPOINT,
           "if name in theirs and tuple(theirs[name].shape) != ours[name].shape", "if False",
           (f"{OF_CHECKPOINT}::test_a_config_that_does_not_fit_the_arrays",)),  # fmt: skip
    Mutant("overwrite is not read", CHECKPOINT, "if path.exists() and not overwrite:", "if False:",
           (f"{OF_CHECKPOINT}::test_an_existing_folder_is_kept",), wiring=True),  # fmt: skip
    Mutant("sampling defaults are not written", CHECKPOINT, "    if generation is not None:\n", "    if False:\n",
           ("tests/training/test_wiring_run.py::test_a_run_does_what_its_config_says",), wiring=True),  # fmt: skip
    Mutant("YaRN does not reach the config", CHECKPOINT, "config = StepAudioConfig.read(path, yarn_factor=yarn_factor)",
           "config = StepAudioConfig.read(path)", (f"{WIRING}::test_yarn_reaches_the_model_that_is_loaded",), wiring=True),  # fmt: skip
    Mutant("layers are chunked together", LAYOUT, "shard_axes=(0,) if stacked else ()", "shard_axes=()",
           (f"{ROUND}::test_layers_are_chunked_one_by_one_by_converter_and_trainer",), wiring=True),  # fmt: skip
    # Checkpoints of a run.
    Mutant("checksums are not compared", RUN, "if found[name] != sums[folder].get(name)]):", "if False]):",
           (f"{OF_RUN}::test_a_damaged_checkpoint_is_named_and_the_one_before_is_read",), wiring=True),  # fmt: skip
    Mutant("a checksum does not see an exchange", CHECKSUMS, "(bits * (2 * place + 1)).sum", "bits.sum",
           (f"{OF_RUN}::test_checksums_see_a_bit_an_exchange_and_no_mesh",)),  # fmt: skip
    Mutant("the oldest checkpoint is read", RUN, "max(self.steps(), default=-1)", "min(self.steps(), default=-1)",
           (f"{OF_RUN}::test_a_damaged_checkpoint_is_named_and_the_one_before_is_read",)),  # fmt: skip
    Mutant("the lowest score is the best", RUN, 'sign = self.best.removeprefix("-"), -1 if self.best.startswith("-") else 1',
           'sign = self.best.removeprefix("-"), 1 if self.best.startswith("-") else -1',
           (f"{OF_RUN}::test_old_checkpoints_go_and_the_best_stays",)),  # fmt: skip
    Mutant("multiples are not kept", RUN, "if self.multiples_of and step % self.multiples_of == 0}",
           "if False}", (f"{OF_RUN}::test_what_is_kept",), wiring=True),  # fmt: skip
    Mutant("moments come back in each other's place", RUN, "[trees[path / TRAIN][name] for name in named(train)]",
           "[trees[path / TRAIN][name] for name in sorted(named(train), reverse=True)]",
           (f"{OF_RUN}::test_it_comes_back_on_another_mesh_and_back_again",), wiring=True),  # fmt: skip
    Mutant("a step's texts are left out", RUN, "            **(texts or {}),\n", "",
           ("tests/training/test_stages.py::"
            "test_a_run_over_stored_data_that_is_stopped_goes_on_to_the_bit[adapters]",), wiring=True),  # fmt: skip
    # Adapters.
    Mutant("whole modules are not stored beside adapters", ADAPTERS,
           "if is_lora(path) or path[0] in modules}", "if is_lora(path)}",
           (f"{OF_ADAPTERS}::test_modules_trained_as_a_whole_are_kept_too",), wiring=True),  # fmt: skip
    Mutant("a base that has changed is taken", ADAPTERS, "if (now := fingerprint(base)) != found.fingerprint:",
           "if (now := fingerprint(base)) is None:", (f"{OF_ADAPTERS}::test_a_base_that_is_missing_or_changed",), wiring=True),  # fmt: skip
    Mutant("adapters are loaded without being merged", ADAPTERS, "    merge_lora(model)\n", "",
           (f"{OF_ADAPTERS}::test_adapters_come_back_beside_their_base_and_merged_into_it",), wiring=True),  # fmt: skip
    Mutant("adapters take the type of the base", ADAPTERS, "array if is_lora(name) else array.astype(whole[name].dtype)",
           "array.astype(whole[name[:-2] + ('kernel',)].dtype if is_lora(name) else whole[name].dtype)",
           (f"{OF_ADAPTERS}::test_adapters_stay_float32_beside_a_served_base",), wiring=True),  # fmt: skip
    # Conversion.
    Mutant("converted tensors keep their type whatever is asked for", FROM_HF,
           "Tensor(DTYPE_CHOICES[dtype] or t.dtype, t.shape)", "Tensor(t.dtype, t.shape)",
           (f"{ROUND}::test_dtypes",), wiring=True),  # fmt: skip
    Mutant("written tensors keep their type whatever is asked for", TO_HF,
           "Tensor(DTYPE_CHOICES[dtype] or tensor.dtype, tensor.shape)", "Tensor(tensor.dtype, tensor.shape)",
           (f"{ROUND}::test_dtypes",), wiring=True),  # fmt: skip
    Mutant("shards have one size", TO_HF, "ShardSink(folder, kept, max_shard_size)", "ShardSink(folder, kept, DEFAULT_SHARD)",
           (f"{WIRING}::test_shards_are_as_large_as_asked_for",), wiring=True),  # fmt: skip
    Mutant("the encoder goes along with the decoder alone", TO_HF, 'if not decoder_only or name.startswith(("model.", "lm_head."))',
           "if True", (f"{ROUND}::test_decoder_only_is_a_plain_qwen2",), wiring=True),  # fmt: skip
    Mutant("the decoder alone has the whole's config", TO_HF, 'source.config.to_hf("decoder" if decoder_only else "nested")',
           'source.config.to_hf("nested")', (f"{ROUND}::test_decoder_only_is_a_plain_qwen2",), wiring=True),  # fmt: skip
    Mutant("checksums of the manifest are of other bytes", TRANSFER, "digest.update(rows.view(np.uint8).reshape(-1).data)",
           "digest.update(rows.view(np.uint8).reshape(-1)[1:].data)", (f"{ROUND}::test_a_manifest_notices_damage",)),  # fmt: skip
    Mutant("a changed source goes on with the old one's tensors", TRANSFER,
           'json.dumps([tool, kind, source.fingerprint(), described', "json.dumps([tool, kind, described",
           ("tests/checkpoints_convert/test_interruption.py::test_a_changed_source_starts_over",), wiring=True),  # fmt: skip
    Mutant("rows are written where they are not", TRANSFER, "sink.write(name, start, rows)", "sink.write(name, 0, rows)",
           (f"{WIRING}::test_tensors_of_several_slabs",), wiring=True),  # fmt: skip
    Mutant("merging on the way out forgets the scale", ADAPTED, "np.float32(self.about.lora.scale) * product", "product",
           (f"{OF_PEFT}::test_to_hf_merges",), wiring=True),  # fmt: skip
    Mutant("merging on the way out takes the first layer's adapters", ADAPTED, "a, b = a[place.layer], b[place.layer]",
           "a, b = a[0], b[0]", (f"{OF_PEFT}::test_to_hf_merges",), wiring=True),  # fmt: skip
    Mutant("modules trained as a whole stay the base's", ADAPTED, "if whole is not None:  #", "if False:  #",
           (f"{OF_PEFT}::test_to_hf_takes_whole_modules_along",), wiring=True),  # fmt: skip
    Mutant("alpha is written as the rank", PEFT, '"lora_alpha": about.lora.alpha', '"lora_alpha": about.lora.rank',
           (f"{OF_PEFT}::test_there_and_back",), wiring=True),  # fmt: skip
    Mutant("rslora is not written", PEFT, '"use_rslora": about.lora.rslora', '"use_rslora": False',
           (f"{WIRING}::test_rslora_goes_to_peft_and_back",), wiring=True),  # fmt: skip
    Mutant("rslora is not read from PEFT", PEFT, 'rslora=bool(values.get("use_rslora"))', "rslora=False",
           (f"{WIRING}::test_rslora_goes_to_peft_and_back",), wiring=True),  # fmt: skip
    Mutant("PEFT's A and B are ours as they lie", PEFT, "reader.read(name, 0, tensor.rows).T", "reader.read(name, 0, tensor.rows)",
           (f"{OF_PEFT}::test_there_and_back",)),  # fmt: skip
    Mutant("new rows of the vocabulary are zero", INITIALISE, "np.broadcast_to(self._mean(name), ",
           "np.broadcast_to(0 * self._mean(name), ", (f"{ROUND}::test_parts_there_and_back",)),  # fmt: skip
    Mutant("the seed of a new adaptor is not read", INITIALISE, 'f"{self._seed} {name}"', 'f"0 {name}"',
           (f"{WIRING}::test_a_new_adaptor_has_its_seed",), wiring=True),  # fmt: skip
    Mutant("two tensors of one type may differ by rounding", VERIFY,
           "                if not exact:\n                    unequal &=", "                if True:\n                    unequal &=",
           (f"{ROUND}::test_verify_finds_one_bit",)),  # fmt: skip
)
