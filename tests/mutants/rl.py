"""Faults of reinforcement: from a reply's reward to the loss, from a config to the trainer, from recipe to recipe."""

from tests.mutants import Mutant

PPO, LOSSES, OBJECTIVES = (f"stepaudio_jax/rl/{name}.py" for name in ("ppo", "losses", "objectives"))
ADVANTAGES, STAGE, LOOP = (f"stepaudio_jax/rl/{name}.py" for name in ("advantages", "stage", "loop"))
LEARNER, FILTER, ROLLOUT = (f"stepaudio_jax/rl/{name}.py" for name in ("learner", "filter", "rollout"))
MGRD, COGNITION, DISTIL = (f"stepaudio_jax/rl/{name}.py" for name in ("mgrd", "self_cognition", "distil"))
SCORING, MIXED = "stepaudio_jax/rl/scoring.py", "stepaudio_jax/rl/reward_model/scoring.py"

UPDATE, STEP, RUN = (f"tests/rl/test_{name}.py" for name in ("wiring", "step_wiring", "loop_wiring"))
CONFIG, RECIPES = (f"tests/rl/test_{name}.py" for name in ("config_wiring", "recipes_wiring"))
TRUNCATED, FILTERED = "tests/rl/test_truncated.py", "tests/rl/test_filter.py"
FROZEN = "tests/training/test_frozen.py::test_the_encoder_is_frozen_in_every_stage"
ROUNDS = f"{RECIPES}::test_each_step_of_mgrd_begins_where_the_one_before_ended"
REFERENCE = f"{RUN}::test_the_reference_stays_where_the_policy_began"


def trained_encoder(config: str, old: str, new: str) -> Mutant:
    name = config.removesuffix(".py")
    return Mutant(
        f"the encoder is trained in {name}", f"configs/{config}", old, new, (f"{FROZEN}[{name}]",), wiring=True
    )


MODEL_33B = '    config.model = "33b"\n'
FROM_33B = "    config = sft_33b.get_config()\n"
MGRD_TOO = '    config.rlvr.trainable = ("encoder", "decoder")\n'
TRAINS_ALL = '    config.trainable = ("encoder", "adaptor", "decoder")\n'

MUTANTS = (
    # From rewards to advantages.
    Mutant(
        "the penalty for leaving the reference is added to each token's reward",
        PPO,
        "rewards = rewards - np.where(mask, ppo.kl_reward",
        "rewards = rewards + np.where(mask, ppo.kl_reward",
        (f"{UPDATE}::test_a_penalty_for_leaving_the_reference_is_taken_off_each_tokens_reward",),
        wiring=True,
    ),
    Mutant(
        "the penalty for leaving the reference is added to a group's rewards",
        PPO,
        "scores = scores - _of_samples(",
        "scores = scores + _of_samples(",
        (f"{UPDATE}::test_a_group_pays_for_leaving_the_reference_too",),
        wiring=True,
    ),
    Mutant(
        "advantages are never whitened",
        PPO,
        "    if ppo.whiten:\n",
        "    if False:\n",
        (f"{UPDATE}::test_advantages_are_whitened_over_the_tokens_that_count",),
        wiring=True,
    ),
    Mutant(
        "advantages are whitened over padding",
        PPO,
        'np.concatenate([extra["advantages"] for extra in extras]), mask))',
        'np.concatenate([extra["advantages"] for extra in extras]), np.ones_like(mask)))',
        (f"{UPDATE}::test_advantages_are_whitened_over_the_tokens_that_count",),
        wiring=True,
    ),
    Mutant(
        "the mean of whitening is over padding",
        ADVANTAGES,
        "mean = jnp.where(mask, x, 0).sum() / count\n    variance",
        "mean = x.mean()\n    variance",
        ("tests/rl/test_advantages.py::test_whitening_counts_only_what_is_marked",),
    ),
    Mutant(
        "gamma and lambda are not passed on",
        PPO,
        "_gae(rewards, value, mask, segment_ids, gamma=ppo.gamma, lam=ppo.lam)",
        "_gae(rewards, value, mask, segment_ids)",
        (f"{UPDATE}::test_gamma_and_lambda_discount",),
        wiring=True,
    ),
    Mutant(
        "a token's advantage goes on into the segment before it",
        ADVANTAGES,
        "same = segment == later_segment",
        "same = segment > 0",
        ("tests/rl/test_advantages.py::test_gae_is_the_sum_of_equation_11_over_the_chosen_tokens",),
    ),
    Mutant(
        "scale is not passed on to the groups",
        PPO,
        "jnp.asarray(groups[1]), baseline, scale=ppo.scale)",
        "jnp.asarray(groups[1]), baseline)",
        (f"{UPDATE}::test_a_group_is_divided_by_its_spread_if_it_is_asked_for",),
        wiring=True,
    ),
    Mutant(
        "the critic learns towards its advantages",
        PPO,
        'extra["advantages"], extra["returns"] = map(np.asarray, found)',
        'extra["returns"], extra["advantages"] = map(np.asarray, found)',
        (f"{UPDATE}::test_with_one_reward_at_the_end_the_advantage_is_the_reward_less_the_value",),
        wiring=True,
    ),
    Mutant(
        "replies without a reward are learnt from",
        PPO,
        "return mask & known[",
        "return mask | known[",
        (f"{UPDATE}::test_a_reply_without_a_reward_has_no_weight_and_no_part_in_whitening",),
        wiring=True,
    ),
    # Which tokens, and what is known of them.
    Mutant(
        "the mask of chosen tokens is not shifted to where they are predicted",
        PPO,
        "mask[:, :-1] = batch.loss_mask[:, 1:]",
        "mask[:] = batch.loss_mask",
        (f"{UPDATE}::test_the_tokens_that_count_are_those_before_which_the_policy_chose",),
        wiring=True,
    ),
    Mutant(
        "old log-probabilities are the sampler's",
        PPO,
        'extra["importance"] = np.asarray(losses.importance(extra["old_log_probs"], own, ppo.importance))',
        'extra["importance"] = np.asarray(losses.importance(extra["old_log_probs"], own, ppo.importance))\n'
        '    for extra, own in zip(extras, sampler, strict=True):\n        extra["old_log_probs"] = own',
        (f"{UPDATE}::test_the_ratio_begins_at_the_trainers_own_log_probabilities",),
        wiring=True,
    ),
    Mutant(
        "importance weights are the sampler over the trainer",
        PPO,
        'losses.importance(extra["old_log_probs"], own, ppo.importance)',
        'losses.importance(own, extra["old_log_probs"], ppo.importance)',
        (f"{UPDATE}::test_importance_weights_are_trainer_over_sampler_and_truncated",),
        wiring=True,
    ),
    Mutant(
        "importance weights are not applied",
        OBJECTIVES,
        'losses = given["importance"] * losses',
        "pass",
        (f"{STEP}::test_a_step_minimises_what_the_paper_says",),
        wiring=True,
    ),
    Mutant(
        "importance weights do not reach the policy's step",
        PPO,
        'of_policy = ("old_log_probs", "advantages", "importance", "reference", "kl_weight")',
        'of_policy = ("old_log_probs", "advantages", "reference", "kl_weight")',
        (f"{UPDATE}::test_importance_weights_are_trainer_over_sampler_and_truncated",),
        wiring=True,
    ),
    Mutant(
        "importance weights are not bounded",
        LOSSES,
        "jnp.minimum(jnp.exp(log_ratio(log_probs, sampler)), highest)",
        "jnp.exp(log_ratio(log_probs, sampler))",
        (f"{UPDATE}::test_importance_weights_are_trainer_over_sampler_and_truncated",),
    ),
    Mutant(
        "every batch's weights add up to one by itself",
        PPO,
        "weights = np.split(np.asarray(losses.weights(mask, segment_ids, aggregation)), len(part))",
        "weights = [np.asarray(losses.weights(masks[i], packed[i].batch.segment_ids, aggregation)) for i in part]",
        (f"{UPDATE}::test_epochs_and_minibatches_are_steps",),
        wiring=True,
    ),
    Mutant(
        "epochs are not counted",
        PPO,
        "for _ in range(ppo.epochs):",
        "for _ in range(1):",
        (f"{UPDATE}::test_epochs_and_minibatches_are_steps",),
        wiring=True,
    ),
    Mutant(
        "the aggregation is not passed on",
        PPO,
        "_weighted(part, packed, masks, extras, ppo.aggregation)",
        '_weighted(part, packed, masks, extras, "token")',
        (f"{UPDATE}::test_one_advantage_for_all_tokens_of_a_reply",),
        wiring=True,
    ),
    # The loss.
    Mutant(
        "the importance ratio is inverted",
        OBJECTIVES,
        'surrogate(scores.log_probs, given["old_log_probs"], given["advantages"], self.clip)',
        'surrogate(given["old_log_probs"], scores.log_probs, given["advantages"], self.clip)',
        (f"{STEP}::test_a_step_minimises_what_the_paper_says",),
        wiring=True,
    ),
    Mutant(
        "the ratio of the surrogate is inverted",
        LOSSES,
        "ratio = jnp.exp(log_ratio(log_probs, old_log_probs))",
        "ratio = jnp.exp(log_ratio(old_log_probs, log_probs))",
        ("tests/rl/test_losses.py::test_the_surrogate_takes_the_worse_of_the_two",),
    ),
    Mutant(
        "the objective's clip is not its own",
        OBJECTIVES,
        'given["advantages"], self.clip)',
        'given["advantages"])',
        (f"{STEP}::test_a_step_minimises_what_the_paper_says",),
        wiring=True,
    ),
    Mutant(
        "entropy is taken off instead of added",
        OBJECTIVES,
        'sums["loss"] = loss - self.entropy_weight',
        'sums["loss"] = loss + self.entropy_weight',
        (f"{STEP}::test_without_advantages_the_entropy_grows",),
    ),
    Mutant(
        "the KL of the loss is added up and not minimised",
        OBJECTIVES,
        'loss = sums["policy_loss"] + sums.get("kl_loss", 0.0)',
        'loss = sums["policy_loss"]',
        (f"{STEP}::test_a_kl_draws_the_policy_to_the_reference",),
        wiring=True,
    ),
    Mutant(
        "the step's log-probabilities are at temperature 1",
        OBJECTIVES,
        "chunks=chunks, temperature=self.temperature, entropy=wanted",
        "chunks=chunks, entropy=wanted",
        (f"{STEP}::test_a_step_minimises_what_the_paper_says",),
        wiring=True,
    ),
    Mutant(
        "log-probabilities are read at temperature 1",
        LEARNER,
        "chunks=self.chunks, temperature=self.temperature, entropy=True",
        "chunks=self.chunks, entropy=True",
        (f"{STEP}::test_the_policy_is_the_distribution_at_the_temperature_of_its_rollouts",),
        wiring=True,
    ),
    Mutant(
        "values are not clipped",
        OBJECTIVES,
        'value_loss(values, given["old_values"], given["returns"], self.clip)',
        'value_loss(values, given["old_values"], given["returns"], None)',
        (f"{STEP}::test_the_critics_step[0.2]",),
        wiring=True,
    ),
    Mutant(
        "gradients of a rollout's batches are not added up",
        LEARNER,
        "return jax.tree.map(jnp.add, total, grads), sums",
        "return grads, sums",
        (f"{STEP}::test_a_step_is_the_sum_over_its_batches",),
        wiring=True,
    ),
    # From a config to the trainer.
    Mutant(
        "the policy's clip is not the config's",
        STAGE,
        "PolicyLoss(Clip(**rl.clip), ",
        "PolicyLoss(Clip(), ",
        (f"{CONFIG}::test_both_objectives_are_the_configs",),
        wiring=True,
    ),
    Mutant(
        "the critic has no clip of values",
        STAGE,
        "CriticLoss(config.rl.value_clip)",
        "CriticLoss(None)",
        (f"{CONFIG}::test_both_objectives_are_the_configs",),
        wiring=True,
    ),
    Mutant(
        "the policy's temperature is not the config's",
        STAGE,
        "rl.kl.estimator, rl.entropy_weight, rl.temperature)",
        "rl.kl.estimator, rl.entropy_weight)",
        (f"{CONFIG}::test_both_objectives_are_the_configs",),
        wiring=True,
    ),
    Mutant(
        "the temperature of what is read is not the config's",
        STAGE,
        "PolicyReader(rl.temperature, config.vocab_chunks)",
        "PolicyReader(1.0, config.vocab_chunks)",
        (f"{CONFIG}::test_both_objectives_are_the_configs",),
        wiring=True,
    ),
    Mutant(
        "the KL's two weights are exchanged",
        STAGE,
        "kl_loss=rl.kl.weight, kl_reward=rl.kl.reward",
        "kl_loss=rl.kl.reward, kl_reward=rl.kl.weight",
        (f"{CONFIG}::test_every_option_of_an_update_is_the_configs",),
        wiring=True,
    ),
    Mutant(
        "the critic trains the adaptor too",
        STAGE,
        'trainable=("decoder", "value_head")',
        'trainable=("adaptor", "decoder", "value_head")',
        (f"{CONFIG}::test_both_objectives_are_the_configs",),
        wiring=True,
    ),
    Mutant(
        "rewards are not normalised where a config says so",
        LOOP,
        "if config.rl.normalise else scores",
        "if False else scores",
        (f"{RUN}::test_rewards_are_normalised_within_their_source",),
        wiring=True,
    ),
    Mutant(
        "rewards are normalised over all sources",
        LOOP,
        "own = valid & np.array([each == source for each in sources])",
        "own = valid",
        (f"{RUN}::test_rewards_are_normalised_within_their_source",),
    ),
    Mutant(
        "penalties for pleasing the judge are added",
        LOOP,
        "scores = scores - sum(config.rl.guards.get(",
        "scores = scores + sum(config.rl.guards.get(",
        (f"{RUN}::test_penalties_are_taken_off_the_reward",),
        wiring=True,
    ),
    Mutant(
        "the penalty for overlong replies is added",
        LOOP,
        "scores = scores - overlong(",
        "scores = scores + overlong(",
        (f"{RUN}::test_penalties_are_taken_off_the_reward",),
        wiring=True,
    ),
    Mutant(
        "the reference of the KL is the policy itself",
        LOOP,
        "functools.partial(self.keeper.read, state=self.reference) if self.held",
        "self.policy.read if self.held",
        (f"{REFERENCE}[0]",),
        wiring=True,
    ),
    Mutant(
        "the reference moves every update",
        LOOP,
        "(number + 1) % config.rl.reference.every == 0",
        "True",
        (f"{REFERENCE}[2]",),
        wiring=True,
    ),
    Mutant(
        "a reply that was cut off counts as whole",
        ROLLOUT,
        'completion.finish_reason == "length"',
        "False",
        ("tests/rl/test_rollout.py::test_replies_are_prompt_by_prompt_and_differ",),
        wiring=True,
    ),
    Mutant(
        "a reward sees each reply as closed and whole",
        SCORING,
        "Sample(each.think, each.answer, each.complete, each.truncated, prompt.truth, prompt.extra)",
        "Sample(each.think, each.answer, True, False, prompt.truth, prompt.extra)",
        (f"{TRUNCATED}::test_a_run_tells_rewards_what_was_cut_off",),
        wiring=True,
    ),
    Mutant(
        "the reward of audio has no guard against replies that were cut off",
        "stepaudio_jax/rl/rewards/audio.py",
        "right = 0.0 if sample.truncated else accuracy(sample)",
        "right = accuracy(sample)",
        (f"{TRUNCATED}::test_the_reward_of_audio_guards_what_it_wraps",),
        wiring=True,
    ),
    Mutant(
        "accuracies have no guard against replies that were cut off",
        "stepaudio_jax/rl/rewards/registry.py",
        "return 0.0 if sample.truncated else function(sample, **options)",
        "return function(sample, **options)",
        (f"{TRUNCATED}::test_what_is_right_is_worth_nothing_where_it_was_cut_off",),
        wiring=True,
    ),
    Mutant(
        "a judge that says nothing gives a reward of 0",
        MIXED,
        "values[i], valid[i] = each.reward or 0.0, each.reward is not None",
        "values[i], valid[i] = each.reward or 0.0, True",
        ("tests/rl/test_rlhf.py::test_a_judge_without_a_verdict_teaches_nothing_and_ends_nothing",),
        wiring=True,
    ),
    # The filter and the recipes.
    Mutant(
        "the filter counts a reply as right for its reasoning alone",
        FILTER,
        "(values > 0.5)",
        "(values > 0.1)",
        (f"{FILTERED}::test_right_is_more_than_a_half",),
    ),
    Mutant(
        "the filter keeps prompts of which a reply was not scored",
        FILTER,
        "self.scored == self.samples and keep[0]",
        "keep[0]",
        (f"{FILTERED}::test_other_bounds_ask_nothing_again_and_another_question_is_refused",),
    ),
    Mutant(
        "MGRD's SFT begins from the first model",
        MGRD,
        "        config.init = checkpoint\n        config.data.sources.audio.path = str(data)",
        "        config.init = self.config.init\n        config.data.sources.audio.path = str(data)",
        (ROUNDS,),
        wiring=True,
    ),
    Mutant(
        "MGRD's RLVR begins from the first model",
        MGRD,
        "        config.init = checkpoint\n        config.prompts = copy_of",
        "        config.init = self.config.init\n        config.prompts = copy_of",
        (ROUNDS,),
        wiring=True,
    ),
    Mutant(
        "MGRD's filter asks the first model",
        MGRD,
        "self.engine(checkpoint), [*self.sources, *self.texts]",
        "self.engine(str(self.config.init)), [*self.sources, *self.texts]",
        (ROUNDS,),
        wiring=True,
    ),
    Mutant(
        "MGRD's rounds all begin from the first model",
        MGRD,
        "checkpoint = rounds.round(number, checkpoint)",
        "checkpoint = rounds.round(number, str(config.init))",
        (ROUNDS,),
        wiring=True,
    ),
    Mutant(
        "MGRD's RLVR takes all prompts",
        MGRD,
        "config.prompts.kept = str(kept)",
        'config.prompts.kept = ""',
        (ROUNDS,),
        wiring=True,
    ),
    Mutant(
        "self-cognition prefers the reply that denies",
        COGNITION,
        "self._sample(good[key], bad[key])",
        "self._sample(bad[key], good[key])",
        (f"{RECIPES}::test_a_pair_prefers_the_reply_that_hears",),
        wiring=True,
    ),
    Mutant(
        "self-cognition's DPO begins from the first model",
        COGNITION,
        "config.init, config.data.sources.pairs.path = checkpoint, ",
        "config.init, config.data.sources.pairs.path = self.config.init, ",
        (f"{RECIPES}::test_each_step_of_self_cognition_begins_where_the_one_before_ended",),
        wiring=True,
    ),
    Mutant(
        "self-cognition distils what denies",
        COGNITION,
        "for each in reversed(found) if each.outcome == HEARS}",
        "for each in reversed(found) if each.outcome == DENIES}",
        (f"{RECIPES}::test_each_step_of_self_cognition_begins_where_the_one_before_ended",),
        wiring=True,
    ),
    Mutant(
        "distillation keeps replies that are wrong",
        DISTIL,
        "    if not right:\n        return WRONG\n",
        "",
        ("tests/rl/test_mgrd.py::test_why_a_reply_is_dropped",),
    ),
    # Who is trained.
    trained_encoder("rlvr_33b.py", MODEL_33B, MODEL_33B + TRAINS_ALL),
    trained_encoder("sft_33b.py", MODEL_33B, MODEL_33B + TRAINS_ALL),
    trained_encoder("mid_training_33b.py", FROM_33B, FROM_33B + TRAINS_ALL),
    trained_encoder("sft_8b.py", FROM_33B, FROM_33B + TRAINS_ALL),
    trained_encoder(
        "rlhf_33b.py", "    config = rlvr_33b.get_config()\n", "    config = rlvr_33b.get_config()\n" + TRAINS_ALL
    ),
    trained_encoder(
        "rlhf_tiny.py", "    config = rlvr_tiny.get_config()\n", "    config = rlvr_tiny.get_config()\n" + TRAINS_ALL
    ),
    trained_encoder(
        "mgrd_tiny.py", "config.rlvr.rl.row_tokens = 224\n", "config.rlvr.rl.row_tokens = 224\n" + MGRD_TOO
    ),
    trained_encoder("rlvr_tiny.py", '("adaptor", "decoder")', '("encoder", "adaptor", "decoder")'),
    Mutant(
        "the encoder is trained wherever a config does not say",
        "configs/common.py",
        'config.trainable = ("adaptor", "decoder")  # of',
        'config.trainable = ("encoder", "adaptor", "decoder")  # of',
        (f"{FROZEN}[sft_8b]", f"{FROZEN}[mid_training_8b]", f"{FROZEN}[mgrd_tiny]"),
        wiring=True,
    ),
    Mutant(
        "the encoder is trained by reinforcement wherever a config does not say",
        "configs/common.py",
        '    config.trainable = ("decoder",)\n',
        '    config.trainable = ("encoder", "decoder")\n',
        (f"{FROZEN}[rlhf_33b]",),
        wiring=True,
    ),
)
