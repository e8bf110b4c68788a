"""What every run of the trainer has, with the defaults; each config says what it changes."""

import ml_collections
from ml_collections.config_dict import placeholder


def run() -> ml_collections.ConfigDict:
    """A supervised run: all but its model, hardware, data and rates."""
    config = ml_collections.ConfigDict()
    config.stage = "supervised"
    config.topology = "cpu"
    config.model = "tiny"
    config.init = ""  # a checkpoint to start from, of `stepaudio convert` or another run; none: random weights
    config.seed = 0
    config.steps = 1_000
    config.trainable = ("adaptor", "decoder")  # of encoder, adaptor, decoder, lora
    config.remat = "none"
    config.scan_layers = True
    config.vocab_chunks = 1
    config.microbatches = 1
    config.z_loss = 0.0  # weight of the squared log of the softmax's denominator
    config.compute_dtype = "float32"
    config.save_dtype = "bfloat16"
    config.log_every = 10
    config.eval_every = 1_000_000_000  # never, if nobody gives the trainer an evaluation

    config.checkpoints = ml_collections.ConfigDict()
    config.checkpoints.save_every = 200
    config.checkpoints.newest = 2  # kept
    config.checkpoints.multiples_of = 0  # kept as well: every step this divides; 0: none
    config.checkpoints.best = ""  # kept as well: of the highest score of this name ("-name": the lowest)

    config.guard = ml_collections.ConfigDict()  # against divergence
    config.guard.action = "stop"  # or "skip": go on without the update
    config.guard.spike = 5.0  # times the median loss of the last `window` steps (counted as 1 nat at least)
    config.guard.window = 50
    config.guard.most_skips = 10  # within a window; one more stops the run

    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "context": 1, "tensor": 1})
    config.generation = ml_collections.ConfigDict({"do_sample": False, "max_new_tokens": 256})
    config.tokenizer = ml_collections.ConfigDict({"vocab_size": 1024})  # the miniature's, where init names none

    config.optim = ml_collections.ConfigDict()
    config.optim.learning_rate = 1e-5
    config.optim.end_learning_rate = 1e-6
    config.optim.warmup_steps = 50
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.1
    config.optim.clip_norm = 1.0
    config.optim.schedule = "cosine"  # or linear, constant, wsd
    config.optim.decay_steps = 0  # of wsd
    config.optim.groups = ml_collections.ConfigDict()  # "adaptor": rates of its own (training/optimizer.py)
    return config


def packed(*sources: str, tokens: int, rows: int) -> ml_collections.ConfigDict:
    """Rows packed from stored data sets (`stepaudio data build`).

    Args:
      sources: names of the data sets; a run gives each a path.
      tokens: of a row.
      rows: of an optimizer step.
    """
    data = ml_collections.ConfigDict()
    data.batch_size = rows
    data.buckets = ((tokens, tokens * 1_280),)  # tokens of a row, samples of its sound: 80 ms a token
    data.sources = ml_collections.ConfigDict({name: source() for name in sources})
    data.weight_by = "tokens"  # or "records"
    data.too_long = "truncate"  # records longer than a row, or "drop"
    data.window = 16_384  # records packed at once
    data.threads = 8
    data.max_bad_share = 0.01  # of the records; more stop the run
    data.render = ml_collections.ConfigDict({"empty_think_loss": True})
    return data


def source(*only: str, weight: float = 1.0) -> ml_collections.ConfigDict:
    """A stored data set, or those of its records that are `only` "audio" or "text", "cot" or "empty_think"."""
    return ml_collections.ConfigDict(
        {
            "path": "",
            "weight": weight,
            "only": only,
            "limit": placeholder(float),  # most passes over it in an epoch
            "max_records": placeholder(int),
        }
    )


def reinforcement() -> ml_collections.ConfigDict:
    """A run of reinforcement learning by the recipe's numbers (RECIPE §2, §3): all but its model, hardware, prompts."""
    config = run()
    config.stage = "rl"
    config.trainable = ("decoder",)
    config.steps = 200
    config.eval_every = 20
    config.checkpoints.save_every = 10
    config.optim.schedule = "constant"
    config.optim.learning_rate = 1e-6
    config.optim.weight_decay = 0.0
    config.critic_optim = ml_collections.ConfigDict(config.optim.to_dict() | {"learning_rate": 5e-6})

    config.prompts = ml_collections.ConfigDict()
    config.prompts.sources = ml_collections.ConfigDict()  # by name: path, weight, reward, accuracy, truth
    config.prompts.kept = ""  # what `stepaudio rl filter` wrote, if only those

    rl = config.rl = ml_collections.ConfigDict()
    rl.prompts = 128  # of an update
    rl.samples = 16  # replies to each
    rl.max_new_tokens = 8_192
    rl.temperature = 1.0
    rl.top_p = 1.0
    rl.top_k = 0
    rl.row_tokens = 10_240  # of a row, prompt and reply
    rl.share_prompts = False  # lay a prompt down once for its replies: pays where those are not much longer than it
    rl.rows = 64  # of a batch; an optimizer step takes as many batches as there are
    rl.sound_rows = 64
    rl.sound_units = 10_240  # of 80 ms, a row of sound
    rl.baseline = "critic"  # or "grpo", "rloo", "reinforce++"
    rl.scale = True  # of grpo: divide by the group's standard deviation
    rl.gamma = 1.0
    rl.lam = 1.0
    rl.whiten = True
    rl.clip = ml_collections.ConfigDict({"low": 0.2, "high": 0.2, "dual": placeholder(float)})
    rl.value_clip = 0.2
    # Devices of their own for critic and reference, the last ones: sizes of the mesh's axes; all 0: the policy's.
    rl.critic_mesh = ml_collections.ConfigDict({"data": 0, "fsdp": 0, "context": 0, "tensor": 0})
    rl.entropy_weight = 0.0
    rl.aggregation = "token"  # or "sequence"
    rl.epochs = 1
    rl.minibatches = 1  # policy steps an epoch
    rl.critic_minibatches = 12
    rl.importance = placeholder(float)  # highest weight against the mismatch of sampler and trainer
    rl.kl = ml_collections.ConfigDict({"weight": 0.0, "estimator": "k3+", "reward": 0.0})  # in the loss, on tokens
    rl.kl.target = placeholder(float)  # of KL(π ‖ π_ref) a token, to which both weights adapt
    # The reference that a KL holds the policy to: every so many updates it goes this part of the way to the policy.
    rl.reference = ml_collections.ConfigDict({"every": 0, "rate": 1.0})  # 0: it stays
    rl.normalise = False  # rewards within each source: less their mean, by their standard deviation
    rl.policy_sees_rubric = False
    # Taken off the reward of a reply that shows the sign (rl/guards.py); 0: counted only.
    rl.guards = ml_collections.ConfigDict({"length": 0.0, "repetition": 0.0, "verdict": 0.0, "language": 0.0})
    rl.overlong = ml_collections.ConfigDict({"weight": 0.0, "buffer": 1_024})
    rl.engine = ml_collections.ConfigDict({"max_rows": 256, "burst": 16})
    rl.engine.pages = 0  # what memory has room for
    return config


def reward_model() -> ml_collections.ConfigDict:
    """What compares the replies to prompts of reward "preference" with their references (rl/reward_model)."""
    return ml_collections.ConfigDict(
        {
            "judge": "",  # "checkpoint", "endpoint", "replay", "miniature"
            "at": "",  # its path or address; the key of an address is in the environment: JUDGE_API_KEY
            "model": "default",  # its name at the address
            "sound": False,  # it hears clips; else it reads their transcripts
            "max_new_tokens": 1_024,
            "scale": "whole",  # or "points": each of the rubric on its own, with its weight
            "values": (-1.0, -0.5, 0.0, 0.5, 1.0),  # φ of the five levels
            "references": "record",  # or "reference": what the reference policy replies
            "max_rows": 32,  # of a checkpoint's engine, of each lane; it takes the memory that these need
            "max_length": 10_240,  # tokens of a comparison and what is said to it
            "at_once": 8,  # questions on the way to an address
            "most_requests": placeholder(int),  # of a process of the run; what is asked beyond has no reward
            "most_tokens": placeholder(int),
        }
    )


def small_world() -> ml_collections.ConfigDict:
    """Prompts from the miniature world (rl/prompts.py)."""
    return ml_collections.ConfigDict(
        {
            "kinds": (),  # all
            "max_events": 3,
            "text_share": 0.0,
            "records": 0,  # never the same question twice
            "seed": placeholder(int),  # of the questions; the run's
            "wrong_captions": placeholder(float),  # no captions
            "weight": 1.0,  # beside other sources
            "reward": "audio",
            "accuracy": "exact",
        }
    )


def dialogues() -> ml_collections.ConfigDict:
    """Prompts from the miniature world's dialogues (rl/prompts.py)."""
    return ml_collections.ConfigDict(
        {
            "kinds": (),  # all
            "max_events": 3,
            "rubric_share": 0.5,  # of the prompts; the others are judged by what people prefer
            "records": 0,  # never the same dialogue twice
            "seed": placeholder(int),  # the run's
            "weight": 1.0,
        }
    )
